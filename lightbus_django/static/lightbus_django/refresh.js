'use strict';
// Refreshes the part of a page that changes, until it says that it is settled. Without JavaScript, people reload it.
{
    const part = document.querySelector('[data-seconds]');
    const controls = document.querySelector('.lightbus-refresh');
    const isOn = controls.querySelector('input');
    const failed = controls.querySelector('.lightbus-refresh-failed');
    const announcement = document.getElementById('lightbus-announcement');
    let isBusy = false;
    let restUntil = 0;

    const attention = () => {
        const section = part.querySelector('section');
        return section === null ? '' : section.innerText;
    };

    const refresh = async() => {
        const url = new URL(window.location.href);
        url.searchParams.set('fragment', '1');
        const response = await fetch(url, {credentials: 'same-origin'});
        if (!response.ok || response.redirected) {
            throw new Error(response.statusText);
        }
        const text = await response.text();
        const selection = document.getSelection();
        if (!isOn.checked || (selection !== null && !selection.isCollapsed)) {
            return; // somebody is copying text
        }
        const before = attention().replace(/\d+/g, '');
        const focused = part.contains(document.activeElement) ? document.activeElement.id : '';
        const open = [...part.querySelectorAll('details[open]')].map((details) => details.id);
        part.innerHTML = text;
        for (const id of open) {
            const again = document.getElementById(id);
            if (again !== null) {
                again.open = true;
            }
        }
        if (focused) {
            const again = document.getElementById(focused);
            if (again !== null) {
                again.focus({preventScroll: true});
            }
        }
        if (part.querySelector('[data-settled]') !== null) {
            clearInterval(timer);
            controls.hidden = true;
        }
        // A screen reader says what has changed, but not that a second has gone by.
        if (attention().replace(/\d+/g, '') !== before) {
            announcement.textContent = attention();
        }
    };

    const tick = async() => {
        const started = performance.now();
        if (!isOn.checked || document.hidden || isBusy || started < restUntil) {
            return;
        }
        isBusy = true;
        try {
            await refresh();
            failed.hidden = true;
        } catch {
            failed.hidden = false;
        } finally {
            isBusy = false;
            // What the server takes long for is refreshed less often: it spends a fifth of the time on it at most.
            const now = performance.now();
            restUntil = now + 4 * (now - started);
        }
    };

    controls.hidden = false;
    const timer = setInterval(tick, 1000 * part.dataset.seconds);
}

from lightbus_django.events.chunks import chunks


def test_chunks_are_limited_by_count_and_by_size():
    def split(sizes):
        return list(chunks(sizes, int, count=3, size=10))

    assert split([]) == []
    assert split([1] * 7) == [[1, 1, 1], [1, 1, 1], [1]]
    assert split([4, 6, 1, 10, 11, 1]) == [[4, 6], [1], [10], [11], [1]]

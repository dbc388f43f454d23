/* Preloaded into a PostgreSQL server: what is written takes 3 ms to reach the disk. */
#include <unistd.h>
#include <sys/syscall.h>

int fdatasync(int fd)
{
    usleep(3000);
    return (int)syscall(SYS_fdatasync, fd);
}

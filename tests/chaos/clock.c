/* Puts the wall clock of a process ahead or behind, at any moment: preloaded, it adds what it finds in a file to every answer of
 * clock_gettime(CLOCK_REALTIME), gettimeofday() and time(). The monotonic clock, and waiting, stay as they are.
 *
 * The file holds one int64 of nanoseconds and is named by CHAOS_CLOCK and the inode of the process's network namespace, so the
 * replicas of one machine have a clock each. The file is made where there is none, and then the clock is right. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int (*real_clock)(clockid_t, struct timespec *);
static const volatile long long *offset;

__attribute__((constructor)) static void begin(void)
{
    real_clock = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    const char *directory = getenv("CHAOS_CLOCK");
    struct stat namespace;
    char path[512];
    if (!directory || stat("/proc/self/ns/net", &namespace))
        return;
    snprintf(path, sizeof path, "%s/%lu", directory, (unsigned long)namespace.st_ino);
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0)
        return;
    if (ftruncate(file, sizeof *offset)) {
        close(file);
        return;
    }
    void *mapped = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED)
        offset = mapped;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
    if (!real_clock)
        begin();
    int failed = real_clock(clock, at);
    if (!failed && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        long long moment = (long long)at->tv_sec * 1000000000 + at->tv_nsec + *offset;
        at->tv_sec = moment / 1000000000;
        at->tv_nsec = moment % 1000000000;
    }
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone)
{
    struct timespec moment;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &moment))
        return -1;
    at->tv_sec = moment.tv_sec;
    at->tv_usec = moment.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at)
{
    struct timespec moment;
    if (clock_gettime(CLOCK_REALTIME, &moment))
        return -1;
    if (at)
        *at = moment.tv_sec;
    return moment.tv_sec;
}

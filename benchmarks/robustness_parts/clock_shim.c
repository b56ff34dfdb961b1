/* Makes the system's clock jump by hours, back and forth, for one process (LD_PRELOAD); monotonic clocks go on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long jump(void) { /* seconds: another one at each call, within two days */
    static unsigned long state = 12345;
    static int seeded = 0;
    if (!seeded) {
        const char *seed = getenv("CLOCK_SEED");
        state += seed ? strtoul(seed, NULL, 10) : 0;
        seeded = 1;
    }
    state = state * 6364136223846793005ul + 1442695040888963407ul;
    return (long)((state >> 33) % 172800) - 86400;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, time);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) time->tv_sec += jump();
    return result;
}

int gettimeofday(struct timeval *time, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}

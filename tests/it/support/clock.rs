//! A server whose wall clock a test sets: both ways, while it runs.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// Adds to every reading of the wall clock as many seconds as a file holds at that moment.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static volatile long long *offset;
static long long seconds(void) {
  if (!offset) {
    int file = open(getenv("CLOCK_FILE"), O_RDONLY);
    offset = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
  }
  return *offset;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, now);
  if (clock == CLOCK_REALTIME) now->tv_sec += seconds();
  return result;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  (void)zone;
  struct timespec exact;
  int result = clock_gettime(CLOCK_REALTIME, &exact);
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return result;
}
time_t time(time_t *now) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (now) *now = exact.tv_sec;
  return exact.tv_sec;
}
"#;

/// A wall clock for a process that is started with [`Clock::env`].
#[derive(Debug)]
pub(crate) struct Clock(TempDir);

impl Clock {
    /// A clock that is right so far.
    pub(crate) fn new() -> Self {
        let clock = Self(TempDir::new().unwrap());
        clock.step(0);
        fs::write(clock.path("clock.c"), SOURCE).unwrap();
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .args([clock.path("clock.so"), clock.path("clock.c")])
            .arg("-ldl")
            .status();
        assert!(built.unwrap().success());
        clock
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// From now on it differs by so many seconds from the right one.
    pub(crate) fn step(&self, seconds: i64) {
        // In place: the process has mapped the file.
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(self.path("offset"));
        std::os::unix::fs::FileExt::write_all_at(&file.unwrap(), &seconds.to_ne_bytes(), 0).unwrap();
    }

    /// What the process's environment needs.
    pub(crate) fn env(&self) -> [(String, String); 2] {
        let path = |name| self.path(name).display().to_string();
        [("LD_PRELOAD".to_owned(), path("clock.so")), ("CLOCK_FILE".to_owned(), path("offset"))]
    }
}

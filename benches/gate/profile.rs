//! What callgrind writes down: how often each function was called, and how many instructions were its own.
//!
//! The format is described in valgrind's manual, "Callgrind Format Specification".

use std::collections::{BTreeMap, HashMap};

/// Calls of these by anything but the allocator itself are allocations.
const ALLOCATING: [&str; 8] = [
    "mi_malloc",
    "mi_malloc_aligned",
    "mi_zalloc",
    "mi_zalloc_aligned",
    "mi_calloc",
    "mi_realloc",
    "mi_realloc_aligned",
    "mi_rezalloc_aligned",
];

/// Wrappers of the C library that send.
const WRITING: [&str; 6] = ["write", "writev", "send", "sendto", "sendmsg", "sendmmsg"];

/// Wrappers of the C library that make one system call each, beside those that send; a clock is read without one.
const CALLING: [&str; 21] = [
    "read",
    "readv",
    "recv",
    "recvfrom",
    "recvmsg",
    "epoll_wait",
    "epoll_ctl",
    "poll",
    "ppoll",
    "syscall",
    "accept",
    "accept4",
    "close",
    "shutdown",
    "fcntl",
    "ioctl",
    "setsockopt",
    "getsockopt",
    "mmap",
    "munmap",
    "madvise",
];

/// Counts of one process in one stretch of time.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Profile {
    /// All instructions.
    pub(crate) instructions: f64,
    /// Allocations through mimalloc.
    pub(crate) allocations: f64,
    /// System calls that send.
    pub(crate) writes: f64,
    /// System calls, those included.
    pub(crate) syscalls: f64,
    /// Instructions of each function's own, by name.
    pub(crate) functions: BTreeMap<String, f64>,
}

impl Profile {
    /// Reads one file.
    pub(crate) fn read(text: &str) -> Self {
        let mut reader = Reader::default();
        for line in text.lines() {
            reader.line(line);
        }
        reader.profile
    }

    /// Adds what another file says of the same process.
    pub(crate) fn add(&mut self, other: &Self) {
        self.instructions += other.instructions;
        self.allocations += other.allocations;
        self.writes += other.writes;
        self.syscalls += other.syscalls;
        for (name, count) in &other.functions {
            *self.functions.entry(name.clone()).or_default() += count;
        }
    }

    /// What one of so many more requests costs: the difference of a long stretch and a short one, divided by theirs.
    pub(crate) fn per_request(long: &Self, short: &Self, more: f64) -> Self {
        let each = |long: f64, short: f64| (long - short) / more;
        let names = long.functions.keys().chain(short.functions.keys());
        let of = |profile: &Self, name: &str| profile.functions.get(name).copied().unwrap_or_default();
        Self {
            instructions: each(long.instructions, short.instructions),
            allocations: each(long.allocations, short.allocations),
            writes: each(long.writes, short.writes),
            syscalls: each(long.syscalls, short.syscalls),
            functions: names.map(|name| (name.clone(), each(of(long, name), of(short, name)))).collect(),
        }
    }
}

/// Where in a file the reader is.
#[derive(Debug, Default)]
struct Reader {
    profile: Profile,
    /// Names that were written out once, by their numbers.
    names: HashMap<String, String>,
    function: String,
    callee: String,
    /// The next line tells the cost of a call, which is the callee's and counted there.
    is_call: bool,
}

impl Reader {
    fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("fn=") {
            self.function = self.name(name);
        } else if let Some(name) = line.strip_prefix("cfn=") {
            self.callee = self.name(name);
        } else if let Some(call) = line.strip_prefix("calls=") {
            self.called(call.split(' ').next().and_then(|count| count.parse().ok()).unwrap_or_default());
            self.is_call = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            let count =
                line.split(' ').nth(1).and_then(|count| count.parse::<f64>().ok()).unwrap_or_default();
            if !std::mem::take(&mut self.is_call) {
                self.profile.instructions += count;
                *self.profile.functions.entry(self.function.clone()).or_default() += count;
            }
        }
    }

    /// `(12) name` gives a number its name, and `(12)` alone means that name.
    fn name(&mut self, text: &str) -> String {
        match text.split_once(") ") {
            Some((number, name)) => {
                let name = plain(name).to_owned();
                self.names.insert(format!("{number})"), name.clone());
                name
            }
            None => self.names.get(text).cloned().unwrap_or_else(|| text.to_owned()),
        }
    }

    fn called(&mut self, count: f64) {
        let callee = self.callee.split('@').next().unwrap_or_default();
        if ALLOCATING.contains(&callee) && !self.function.trim_start_matches('_').starts_with("mi_") {
            self.profile.allocations += count;
        }
        // A wrapper that calls another one makes one system call.
        let caller = self.function.split('@').next().unwrap_or_default();
        if WRITING.contains(&caller) || CALLING.contains(&caller) {
            return;
        }
        if WRITING.contains(&callee) {
            self.profile.writes += count;
            self.profile.syscalls += count;
        } else if CALLING.contains(&callee) {
            self.profile.syscalls += count;
        }
    }
}

/// A name without the compiler's hash, callgrind's mark of recursion, and most of a long list of types.
fn plain(name: &str) -> &str {
    let name = name
        .rsplit_once("'")
        .filter(|(_, number)| number.parse::<u32>().is_ok())
        .map_or(name, |(name, _)| name);
    let hash = name.rsplit_once("::h").filter(|(_, hash)| hash.len() == 16);
    let name = hash.map_or(name, |(name, _)| name);
    let end = name.char_indices().nth(140).map_or(name.len(), |(end, _)| end);
    &name[..end]
}

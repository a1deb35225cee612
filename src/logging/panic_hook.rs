//! A panic is a line of the log: what the standard library prints on standard error instead may wait for its reader.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;

/// Logs panics of this process and all it forks. A hook that the program has set before is called as well; one that it
/// sets later replaces this one.
pub(super) fn install_hook() {
    let before = std::panic::take_hook();
    // Taken twice, it is the standard library's own.
    let printing = std::panic::take_hook();
    let is_own = !std::ptr::eq(&raw const *before, &raw const *printing);
    std::panic::set_hook(Box::new(move |panic| {
        log_panic(panic);
        if is_own {
            before(panic);
        }
    }));
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("no message");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    // Only where RUST_BACKTRACE asks for it.
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => {
            let backtrace = format!("\n{backtrace}");
            tracing::error!(thread, location, backtrace, "panicked at {location}: {message}");
        }
        _ => tracing::error!(thread, location, "panicked at {location}: {message}"),
    }
}

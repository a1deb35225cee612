//! Programs that take processor time from everything else.

use std::process::{Child, Command, Stdio};
use std::thread;

/// Busy loops; they end with the value.
#[derive(Debug)]
pub(crate) struct Burners(Vec<Child>);

impl Burners {
    /// So many busy loops for each processor.
    pub(crate) fn start(each: usize) -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let burner = |_| {
            let mut command = Command::new("sh");
            command.args(["-c", "while :; do :; done"]).stdin(Stdio::null()).stdout(Stdio::null());
            command.spawn().unwrap()
        };
        Self((0..each * processors).map(burner).collect())
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        for burner in &mut self.0 {
            let _ = burner.kill();
            let _ = burner.wait();
        }
    }
}

//! A terminal of a test's own: what a program draws on it, and keys.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::pty::{Winsize, openpty};

use crate::support::wait;

/// A program that runs in a terminal of 160 columns and 30 lines; it is killed when it goes out of scope.
#[derive(Debug)]
pub(crate) struct PseudoTerminal {
    child: Child,
    keyboard: File,
    drawn: Arc<Mutex<String>>,
}

impl PseudoTerminal {
    /// Runs the program of the package with these words.
    pub(crate) fn run(run_dir: &Path, words: &[&str]) -> Self {
        let size = Winsize { ws_row: 30, ws_col: 160, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_regatta"));
        command
            .arg("--run-dir")
            .arg(run_dir)
            .args(words)
            .env_clear()
            .env("TERM", "xterm")
            .current_dir(run_dir);
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let keyboard = File::from(pty.master);
        let mut screen = keyboard.try_clone().unwrap();
        let drawn = Arc::new(Mutex::new(String::new()));
        let seen = Arc::clone(&drawn);
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            // It fails when no one holds the other end any more.
            while let Ok(len @ 1..) = screen.read(&mut chunk) {
                seen.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..len]));
            }
        });
        Self { child, keyboard, drawn }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Types.
    pub(crate) fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until this was drawn since the start, or since it was waited for the last time.
    #[track_caller]
    pub(crate) fn shows(&self, text: &str) {
        wait::until(&format!("the terminal shows {text:?}"), wait::LONG, || {
            let mut drawn = self.drawn.lock().unwrap();
            let found = drawn.find(text).map(|at| at + text.len());
            found.map(|end| drawn.drain(..end)).is_some()
        });
    }

    /// Waits for its end; the exit code.
    #[track_caller]
    pub(crate) fn ends(&mut self, within: Duration) -> Option<i32> {
        wait::until_some("the program ends", within, || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for PseudoTerminal {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

//! `top`: the running fleet, live, in a terminal.
//!
//! A client like any other: it asks for the status over one connection, and finds the fleet again when that ends. A
//! command that is given here goes over a connection of its own, because its result may take minutes.

mod keys;
mod model;
mod render;

use std::io;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use model::{KeyAction, TopCommand, TopModel};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event;
use ratatui::crossterm::event::Event;

use crate::bootstrap::exit_code;
use crate::bootstrap::exit_code::{CommandFailure, print_line};
use crate::cli::fetch;
use crate::cli::status::table::Severity;
use crate::config;
use crate::config::ConfigInputs;
use crate::control::client::{ControlClient, ControlError};
use crate::control::protocol::{ControlReply, ControlRequest};
use crate::status::document::InstanceStatus;
use crate::sys::signal::{Signal, SignalReader};
use crate::sys::{clock, terminal};

/// Longest wait for the first answer.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait for an answer before keys are looked at again; it usually comes within a millisecond.
const ANSWER: Duration = Duration::from_millis(50);

/// Longest time without a look at signals and results.
const STEP: Duration = Duration::from_millis(250);

/// Longest time without a redraw: a silence grows, a note fades.
const REDRAW: Duration = Duration::from_secs(1);

/// Columns of one picture that is printed where there is no terminal.
const COLUMNS: u16 = 160;

/// Signals that end the view; they must not leave the terminal as it is.
const ENDING: &[Signal] = &[Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT];

/// Shows the running fleet until the operator leaves; with `once`, prints one picture.
pub(super) fn top(inputs: &ConfigInputs, interval: Duration, once: bool) -> Result<u8, CommandFailure> {
    let run_dir = config::run_dir(inputs).map_err(|error| CommandFailure::new(exit_code::USAGE, &error))?;
    let first = fetch::parse_status(fetch::fetch_status(&run_dir, STATUS_TIMEOUT)?)?;
    let model = TopModel::new(first, clock::monotonic());
    if once {
        let columns = terminal::columns().unwrap_or(COLUMNS);
        print_line(render::render_text(&model, columns, clock::monotonic()));
        return Ok(exit_code::OK);
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let message = "top needs a terminal; --once prints one picture without".to_owned();
        return Err(CommandFailure { code: exit_code::USAGE, message });
    }
    TopScreen::open(&run_dir, interval, model).and_then(TopScreen::run).map_err(|error| CommandFailure {
        code: exit_code::FAILED,
        message: format!("the terminal cannot be used: {error}"),
    })
}

/// Gives the terminal back, however the view ends; a panic does so by the hook that was set when it was taken.
struct TerminalGuard(DefaultTerminal);

impl Drop for TerminalGuard {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What a command has to tell.
enum CommandUpdate {
    /// How far it is.
    Progress(String),
    /// How it ended.
    Finished(Severity, String),
}

struct TopScreen {
    terminal: TerminalGuard,
    signals: SignalReader,
    model: TopModel,
    poller: StatusPoller,
    update_sender: Sender<CommandUpdate>,
    updates: Receiver<CommandUpdate>,
}

impl TopScreen {
    fn open(run_dir: &Path, interval: Duration, model: TopModel) -> io::Result<Self> {
        let signals = SignalReader::block(ENDING)?;
        let (update_sender, updates) = mpsc::channel();
        let poller = StatusPoller {
            run_dir: run_dir.to_owned(),
            interval,
            client: None,
            is_waiting: false,
            next_at: clock::monotonic() + interval,
        };
        let terminal = TerminalGuard(ratatui::try_init()?);
        Ok(Self { terminal, signals, model, poller, update_sender, updates })
    }

    fn run(mut self) -> io::Result<u8> {
        let mut redraw_at = Duration::ZERO;
        loop {
            let now = clock::monotonic();
            let is_new = self.receive_updates(now) | self.poll_status(now);
            if is_new || redraw_at <= now {
                let model = &self.model;
                self.terminal.0.draw(|frame| render::draw(frame, model, now))?;
                redraw_at = now + REDRAW;
            }
            let wait = self.poller.next_at.saturating_sub(now).min(STEP);
            if event::poll(wait)? {
                redraw_at = Duration::ZERO;
                if self.handle_keys()? {
                    return Ok(exit_code::OK);
                }
            }
            if self.signals.next()?.is_some() {
                return Ok(exit_code::OK);
            }
        }
    }

    /// Takes what was typed; true when the operator leaves.
    fn handle_keys(&mut self) -> io::Result<bool> {
        loop {
            let key = if let Event::Key(key) = event::read()? { keys::interpret(key) } else { None };
            let now = clock::monotonic();
            match key.and_then(|key| self.model.handle_key(key, now)) {
                Some(KeyAction::Quit) => return Ok(true),
                Some(KeyAction::Run(command)) => self.send_command(command, now),
                None => {}
            }
            if !event::poll(Duration::ZERO)? {
                return Ok(false);
            }
        }
    }

    /// Takes the news of a command; whether there were any.
    fn receive_updates(&mut self, now: Duration) -> bool {
        let mut received = false;
        while let Ok(update) = self.updates.try_recv() {
            received = true;
            match update {
                CommandUpdate::Progress(text) => self.model.show_note(text, Severity::Transitional, now),
                CommandUpdate::Finished(severity, text) => {
                    self.model.set_command_pending(false);
                    self.model.show_note(text, severity, now);
                }
            }
        }
        received
    }

    /// Takes the status if it has come; whether something has changed.
    fn poll_status(&mut self, now: Duration) -> bool {
        match self.poller.poll(now) {
            None => false,
            Some(Ok(status)) => {
                self.model.update(status, now);
                true
            }
            Some(Err(why)) => {
                self.model.set_disconnected(why);
                true
            }
        }
    }

    fn send_command(&mut self, command: TopCommand, now: Duration) {
        self.model.set_command_pending(true);
        self.model.show_note("the fleet is asked".to_owned(), Severity::Transitional, now);
        let (run_dir, update_sender) = (self.poller.run_dir.clone(), self.update_sender.clone());
        std::thread::spawn(move || {
            let finished = match run_command(&run_dir, command, &update_sender) {
                Ok((true, message)) => CommandUpdate::Finished(Severity::Good, message),
                Ok((false, message)) => CommandUpdate::Finished(Severity::Bad, message),
                Err(error) => CommandUpdate::Finished(Severity::Bad, fetch::to_failure(&error).message),
            };
            // No one listens once the view is closed; the command goes on in the fleet.
            let _ = update_sender.send(finished);
        });
    }
}

/// Asks the fleet and waits for the result: whether it was done, and the sentence.
fn run_command(
    run_dir: &Path,
    command: TopCommand,
    update_sender: &Sender<CommandUpdate>,
) -> Result<(bool, String), ControlError> {
    let mut client = ControlClient::connect(run_dir)?;
    client.send(&match command {
        TopCommand::Reload => ControlRequest::Reload { wait: true },
        TopCommand::Restart { slot } => ControlRequest::Restart { slot, wait: true },
    })?;
    loop {
        match client.receive(None)? {
            ControlReply::Result(result) => return Ok((result.ok, result.message)),
            ControlReply::Progress(progress) => {
                let text = format!("{} of {}: {}", progress.completed, progress.total, progress.message);
                let _ = update_sender.send(CommandUpdate::Progress(text));
            }
            _ => {}
        }
    }
}

/// Asks for the status, again and again, without ever making keys wait long.
struct StatusPoller {
    run_dir: PathBuf,
    interval: Duration,
    client: Option<ControlClient>,
    /// Whether an answer is on its way.
    is_waiting: bool,
    next_at: Duration,
}

impl StatusPoller {
    /// Asks if it is time, and takes the answer if it is there.
    fn poll(&mut self, now: Duration) -> Option<Result<InstanceStatus, String>> {
        if !self.is_waiting {
            if now < self.next_at {
                return None;
            }
            self.next_at = now + self.interval;
            if let Err(error) = self.request() {
                self.client = None;
                return Some(Err(fetch::to_failure(&error).message));
            }
            self.is_waiting = true;
        }
        let answered = self.client.as_mut()?.receive(Some(now + ANSWER));
        if matches!(answered, Err(ControlError::Timeout)) {
            // It is asked for again at the next turn; a stopped supervisor answers when it goes on.
            self.next_at = now + STEP;
            return None;
        }
        self.is_waiting = false;
        let understood =
            answered.map_err(|error| fetch::to_failure(&error)).and_then(fetch::status_from_reply);
        let status = understood.and_then(fetch::parse_status).map_err(|failure| failure.message);
        if status.is_err() {
            self.client = None;
        }
        Some(status)
    }

    fn request(&mut self) -> Result<(), ControlError> {
        let client = match self.client.take() {
            Some(client) => client,
            None => ControlClient::connect(&self.run_dir)?,
        };
        self.client.insert(client).send(&ControlRequest::Status)
    }
}

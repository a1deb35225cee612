//! `top`: the running fleet, live, in a terminal.
//!
//! A client like any other: it asks for the status over one connection, and finds the fleet again when that ends. An
//! order that is given here goes over a connection of its own, because its verdict may take minutes.

mod draw;
mod keys;
mod model;

use std::io;
use std::io::IsTerminal;
use std::path::Path;
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event;
use ratatui::crossterm::event::Event;
use ratatui::crossterm::terminal;

use crate::cli::ask;
use crate::cli::columns::Mood;
use crate::cli::exit;
use crate::cli::exit::Failure;
use crate::cli::exit::say;
use crate::config;
use crate::config::Inputs;
use crate::control::client::Client;
use crate::control::client::Error;
use crate::control::protocol::Reply;
use crate::control::protocol::Request;
use crate::control::status::Status;
use crate::sys::signal::Signal;
use crate::sys::signal::Signals;
use crate::sys::time;
use model::Act;
use model::Model;
use model::Order;

/// Longest wait for the first answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest wait for an answer before keys are looked at again; it usually comes within a millisecond.
const ANSWER: Duration = Duration::from_millis(50);

/// Longest time without a look at signals and verdicts.
const STEP: Duration = Duration::from_millis(250);

/// Longest time without a redraw: a silence grows, a note fades.
const REDRAW: Duration = Duration::from_secs(1);

/// Columns of one picture that is printed where there is no terminal.
const COLUMNS: u16 = 160;

/// Signals that end the view; they must not leave the terminal as it is.
const ENDING: &[Signal] = &[Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT];

/// Shows the running fleet until the operator leaves; with `once`, prints one picture.
pub(super) fn top(inputs: &Inputs, interval: Duration, once: bool) -> Result<u8, Failure> {
    let run_dir = config::run_dir(inputs).map_err(|error| Failure::new(exit::USAGE, &error))?;
    let first = ask::understand(ask::status(&run_dir, PATIENCE)?)?;
    let model = Model::new(first, time::monotonic());
    if once {
        let columns = terminal_columns().unwrap_or(COLUMNS);
        say(draw::text(&model, columns, time::monotonic()));
        return Ok(exit::OK);
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let sentence = "top needs a terminal; --once prints one picture without".to_owned();
        return Err(Failure { code: exit::USAGE, sentence });
    }
    View::open(&run_dir, interval, model).and_then(View::run).map_err(|error| Failure {
        code: exit::FAILED,
        sentence: format!("the terminal cannot be used: {error}"),
    })
}

/// Columns of the terminal that is written to, if it is one.
pub(super) fn terminal_columns() -> Option<u16> {
    io::stdout().is_terminal().then(|| terminal::size().ok()).flatten().map(|(columns, _)| columns)
}

/// Gives the terminal back, however the view ends; a panic does so by the hook that was set when it was taken.
struct Borrowed(DefaultTerminal);

impl Drop for Borrowed {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What an order has to tell.
enum News {
    /// How far it is.
    Progress(String),
    /// How it ended.
    Verdict(Mood, String),
}

struct View {
    terminal: Borrowed,
    signals: Signals,
    model: Model,
    asker: Asker,
    tell: Sender<News>,
    told: Receiver<News>,
}

impl View {
    fn open(run_dir: &Path, interval: Duration, model: Model) -> io::Result<Self> {
        let signals = Signals::take(ENDING)?;
        let (tell, told) = mpsc::channel();
        let asker = Asker {
            run_dir: run_dir.to_owned(),
            interval,
            client: None,
            is_waiting: false,
            next_at: time::monotonic() + interval,
        };
        let terminal = Borrowed(ratatui::try_init()?);
        Ok(Self { terminal, signals, model, asker, tell, told })
    }

    fn run(mut self) -> io::Result<u8> {
        let mut redraw_at = Duration::ZERO;
        loop {
            let now = time::monotonic();
            let is_new = self.hear(now) | self.look(now);
            if is_new || redraw_at <= now {
                let model = &self.model;
                self.terminal.0.draw(|frame| draw::draw(frame, model, now))?;
                redraw_at = now + REDRAW;
            }
            let wait = self.asker.next_at.saturating_sub(now).min(STEP);
            if event::poll(wait)? {
                redraw_at = Duration::ZERO;
                if self.press()? {
                    return Ok(exit::OK);
                }
            }
            if self.signals.next()?.is_some() {
                return Ok(exit::OK);
            }
        }
    }

    /// Takes what was typed; true when the operator leaves.
    fn press(&mut self) -> io::Result<bool> {
        loop {
            let key = if let Event::Key(key) = event::read()? { keys::meaning(key) } else { None };
            let now = time::monotonic();
            match key.and_then(|key| self.model.press(key, now)) {
                Some(Act::Quit) => return Ok(true),
                Some(Act::Give(order)) => self.give(order, now),
                None => {}
            }
            if !event::poll(Duration::ZERO)? {
                return Ok(false);
            }
        }
    }

    /// Takes the news of an order; whether there were any.
    fn hear(&mut self, now: Duration) -> bool {
        let mut heard = false;
        while let Ok(news) = self.told.try_recv() {
            heard = true;
            match news {
                News::Progress(text) => self.model.say(text, Mood::Passing, now),
                News::Verdict(mood, text) => {
                    self.model.ordering(false);
                    self.model.say(text, mood, now);
                }
            }
        }
        heard
    }

    /// Takes the status if it has come; whether something has changed.
    fn look(&mut self, now: Duration) -> bool {
        match self.asker.turn(now) {
            None => false,
            Some(Ok(status)) => {
                self.model.update(status, now);
                true
            }
            Some(Err(why)) => {
                self.model.lose(why);
                true
            }
        }
    }

    fn give(&mut self, order: Order, now: Duration) {
        self.model.ordering(true);
        self.model.say("the fleet is asked".to_owned(), Mood::Passing, now);
        let (run_dir, tell) = (self.asker.run_dir.clone(), self.tell.clone());
        std::thread::spawn(move || {
            let verdict = match carry_out(&run_dir, order, &tell) {
                Ok((true, sentence)) => News::Verdict(Mood::Good, sentence),
                Ok((false, sentence)) => News::Verdict(Mood::Bad, sentence),
                Err(error) => News::Verdict(Mood::Bad, ask::failure(&error).sentence),
            };
            // No one listens once the view is closed; the order goes on in the fleet.
            let _ = tell.send(verdict);
        });
    }
}

/// Asks the fleet and waits for its verdict: whether it was done, and the sentence.
fn carry_out(run_dir: &Path, order: Order, tell: &Sender<News>) -> Result<(bool, String), Error> {
    let mut client = Client::connect(run_dir)?;
    client.ask(&match order {
        Order::Reload => Request::Reload { wait: true },
        Order::Restart { slot } => Request::Restart { slot, wait: true },
    })?;
    loop {
        match client.reply(None)? {
            Reply::Verdict(verdict) => return Ok((verdict.ok, verdict.sentence)),
            Reply::Progress(progress) => {
                let text = format!("{} of {}: {}", progress.done, progress.total, progress.text);
                let _ = tell.send(News::Progress(text));
            }
            _ => {}
        }
    }
}

/// Asks for the status, again and again, without ever making keys wait long.
struct Asker {
    run_dir: PathBuf,
    interval: Duration,
    client: Option<Client>,
    /// Whether an answer is on its way.
    is_waiting: bool,
    next_at: Duration,
}

impl Asker {
    /// Asks if it is time, and takes the answer if it is there.
    fn turn(&mut self, now: Duration) -> Option<Result<Status, String>> {
        if !self.is_waiting {
            if now < self.next_at {
                return None;
            }
            self.next_at = now + self.interval;
            if let Err(error) = self.ask() {
                self.client = None;
                return Some(Err(ask::failure(&error).sentence));
            }
            self.is_waiting = true;
        }
        let answered = self.client.as_mut()?.reply(Some(now + ANSWER));
        if matches!(answered, Err(Error::Timeout)) {
            // It is asked for again at the next turn; a stopped supervisor answers when it goes on.
            self.next_at = now + STEP;
            return None;
        }
        self.is_waiting = false;
        let understood = answered.map_err(|error| ask::failure(&error)).and_then(ask::document);
        let status = understood.and_then(ask::understand).map_err(|failure| failure.sentence);
        if status.is_err() {
            self.client = None;
        }
        Some(status)
    }

    fn ask(&mut self) -> Result<(), Error> {
        let client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(&self.run_dir)?,
        };
        self.client.insert(client).ask(&Request::Status)
    }
}

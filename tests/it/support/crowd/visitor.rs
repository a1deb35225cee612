//! One client: its connection, its cookie, and the count it was told last.

use tokio::sync::Semaphore;

use super::Ask;
use super::Plan;
use super::connection::Answer;
use super::connection::Connection;
use super::connection::word;
use super::report::Came;
use super::report::Report;

/// A client that comes again and again.
#[derive(Debug)]
pub(super) struct Visitor {
    plan: Plan,
    number: usize,
    connection: Option<Connection>,
    cookie: String,
    /// Its views as it was told last.
    views: u64,
    /// Requests since then that may have been counted although no answer told so.
    unknown: u64,
}

impl Visitor {
    pub(super) fn new(plan: Plan, number: usize) -> Self {
        Self { plan, number, connection: None, cookie: String::new(), views: 0, unknown: 0 }
    }

    /// Makes a connection if there is none; a failure is noted.
    pub(super) async fn connect(&mut self, connecting: &Semaphore, report: &mut Report) {
        let _turn = connecting.acquire().await;
        match Connection::open(self.plan.address, self.plan.source(self.number)).await {
            Ok(connection) => self.connection = Some(connection),
            Err(error) => report.fail(&format!("connect: {}", word(&error))),
        }
    }

    /// Sends one request; what came of it.
    pub(super) async fn come(&mut self, connecting: &Semaphore, report: &mut Report) -> Came {
        // A pool looks before it sends; a connection that ended between two requests is no failure.
        if self.connection.as_ref().is_some_and(Connection::is_over) {
            self.connection = None;
            report.reconnected += 1;
        }
        if self.connection.is_none() {
            self.connect(connecting, report).await;
        }
        let request = self.request();
        let Some(connection) = &mut self.connection else { return Came::Failed("no connection".into()) };
        match connection.ask(request.as_bytes()).await {
            Ok(answer) => {
                if answer.closes() || self.plan.fresh {
                    self.connection = None;
                }
                self.look(&answer)
            }
            Err(error) => {
                self.connection = None;
                self.unknown += 1;
                Came::Failed(word(&error).into())
            }
        }
    }

    fn request(&self) -> String {
        let (path, accept) = match self.plan.ask {
            Ask::Visit => ("/", "*/*"),
            Ask::Page => ("/", "text/html"),
            Ask::Path(path) => (path, "*/*"),
        };
        let cookie = match self.cookie.as_str() {
            "" => String::new(),
            cookie => format!("Cookie: {cookie}\r\n"),
        };
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n{cookie}\r\n")
    }

    /// Is the answer what it should be?
    fn look(&mut self, answer: &Answer) -> Came {
        if let (Some(cookie), _) = answer.header("set-cookie").split_once(';').unzip()
            && !cookie.is_empty()
        {
            self.cookie = cookie.to_owned();
        }
        match answer.status {
            200 if !answer.header("session-state").is_empty() => {
                Came::Failed(format!("200 with Session-State: {}", answer.header("session-state")))
            }
            200 => match self.plan.ask {
                Ask::Path(_) => Came::Answered,
                Ask::Visit => self.count(number_after(&answer.body, "Views:")),
                Ask::Page => self.count(number_after(&answer.body, "id=\"views\"")),
            },
            503 => {
                let problem = answer.header("content-type").starts_with("application/problem+json");
                let whole = problem && !answer.header("retry-after").is_empty();
                if whole { Came::Refused } else { Came::Failed("503 that is no refusal".into()) }
            }
            other => Came::Failed(format!("status {other}")),
        }
    }

    fn count(&mut self, views: Option<u64>) -> Came {
        let Some(views) = views else { return Came::Failed("200 without a count".into()) };
        let most = self.views + 1 + self.unknown;
        let came = match views {
            _ if views <= self.views => Came::Failed("a count went back or stood still".into()),
            _ if views > most => Came::Failed("a count jumped".into()),
            _ => Came::Answered,
        };
        (self.views, self.unknown) = (views, 0);
        came
    }

    /// It leaves; what it knows of its count goes into the sum.
    pub(super) fn leave(self, report: &mut Report) {
        report.counted += self.views;
    }
}

/// The number that follows on a text, without what separates its thousands; none where there is no digit.
fn number_after(body: &str, text: &str) -> Option<u64> {
    let rest = &body[body.find(text)? + text.len()..];
    let rest = rest.trim_start_matches(|character: char| !character.is_ascii_digit());
    let is_part = |character: &char| !matches!(character, '<' | '\n' | '|');
    rest.chars().take_while(is_part).filter(char::is_ascii_digit).collect::<String>().parse().ok()
}

//! One client: its connection, its cookie, and the count it was told last.

use tokio::sync::Semaphore;

use super::connection::{Answer, Connection, word};
use super::report::{SwarmOutcome, SwarmReport};
use super::{SwarmPlan, SwarmRequest};

/// A client that comes again and again.
#[derive(Debug)]
pub(super) struct SwarmClient {
    plan: SwarmPlan,
    number: usize,
    connection: Option<Connection>,
    cookie: String,
    /// Its views as it was told last.
    views: u64,
    /// Requests since then that may have been counted although no answer told so.
    unknown: u64,
}

impl SwarmClient {
    pub(super) fn new(plan: SwarmPlan, number: usize) -> Self {
        Self { plan, number, connection: None, cookie: String::new(), views: 0, unknown: 0 }
    }

    /// Makes a connection if there is none; a failure is noted.
    pub(super) async fn connect(&mut self, connecting: &Semaphore, report: &mut SwarmReport) {
        let _turn = connecting.acquire().await;
        match Connection::open(self.plan.address, self.plan.source(self.number)).await {
            Ok(connection) => self.connection = Some(connection),
            Err(error) => report.fail(&format!("connect: {}", word(&error))),
        }
    }

    /// Sends one request; what came of it.
    pub(super) async fn come(&mut self, connecting: &Semaphore, report: &mut SwarmReport) -> SwarmOutcome {
        // A pool looks before it sends; a connection that ended between two requests is no failure.
        if self.connection.as_ref().is_some_and(Connection::is_closed) {
            self.connection = None;
            report.reconnected += 1;
        }
        if self.connection.is_none() {
            self.connect(connecting, report).await;
        }
        let request = self.request();
        let Some(connection) = &mut self.connection else {
            return SwarmOutcome::Failed("no connection".into());
        };
        match connection.request(request.as_bytes()).await {
            Ok(answer) => {
                if answer.closes() || self.plan.fresh {
                    self.connection = None;
                }
                self.evaluate(&answer)
            }
            Err(error) => {
                self.connection = None;
                self.unknown += 1;
                SwarmOutcome::Failed(word(&error).into())
            }
        }
    }

    fn request(&self) -> String {
        let (path, accept) = match self.plan.request {
            SwarmRequest::View => ("/", "*/*"),
            SwarmRequest::Page => ("/", "text/html"),
            SwarmRequest::Path(path) => (path, "*/*"),
        };
        let cookie = match self.cookie.as_str() {
            "" => String::new(),
            cookie => format!("Cookie: {cookie}\r\n"),
        };
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n{cookie}\r\n")
    }

    /// Is the answer what it should be?
    fn evaluate(&mut self, answer: &Answer) -> SwarmOutcome {
        if let (Some(cookie), _) = answer.header("set-cookie").split_once(';').unzip()
            && !cookie.is_empty()
        {
            self.cookie = cookie.to_owned();
        }
        match answer.status {
            200 if !answer.header("session-state").is_empty() => {
                SwarmOutcome::Failed(format!("200 with Session-State: {}", answer.header("session-state")))
            }
            200 => match self.plan.request {
                SwarmRequest::Path(_) => SwarmOutcome::Answered,
                SwarmRequest::View => self.count(number_after(&answer.body, "Views:")),
                SwarmRequest::Page => self.count(number_after(&answer.body, "id=\"views\"")),
            },
            503 => {
                let problem = answer.header("content-type").starts_with("application/problem+json");
                let whole = problem && !answer.header("retry-after").is_empty();
                if whole {
                    SwarmOutcome::Refused
                } else {
                    SwarmOutcome::Failed("503 that is no refusal".into())
                }
            }
            other => SwarmOutcome::Failed(format!("status {other}")),
        }
    }

    fn count(&mut self, views: Option<u64>) -> SwarmOutcome {
        let Some(views) = views else { return SwarmOutcome::Failed("200 without a count".into()) };
        let most = self.views + 1 + self.unknown;
        let came = match views {
            _ if views <= self.views => SwarmOutcome::Failed("a count went back or stood still".into()),
            _ if views > most => SwarmOutcome::Failed("a count jumped".into()),
            _ => SwarmOutcome::Answered,
        };
        (self.views, self.unknown) = (views, 0);
        came
    }

    /// It leaves; what it knows of its count goes into the sum.
    pub(super) fn leave(self, report: &mut SwarmReport) {
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

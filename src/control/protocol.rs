//! The messages of the control socket: one JSON object a line, with its version in every one.
//!
//! ```json
//! {"version":2,"command":"scale","workers":8}
//! {"version":2,"progress":{"completed":2,"total":8,"message":"slot 1 serves"}}
//! {"version":2,"result":{"ok":true,"exit_code":0,"message":"8 workers serve","details":{}}}
//! ```
//!
//! Requests are read strictly: a request with a typing error must not be carried out in part. Replies are read
//! tolerantly, so that an older command line understands a newer fleet of the same version.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::control::events::FleetEvent;

/// Version of the protocol. It changes when an old client would misunderstand, not when a field is added to a reply.
pub const VERSION: u32 = 2;

/// The version before it: a client of it gets its replies in its own form, and may command what has one.
pub const PREVIOUS_VERSION: u32 = 1;

/// What a fleet of that version says to a request of another one.
const VERSION_REFUSED: &str = "of the control protocol is not spoken here";

/// Longest request, bytes, its newline left out.
pub const REQUEST_MAX: usize = 64 * 1024;

/// Longest part of a client's or fleet's text that an error repeats, characters.
const QUOTE_MAX: usize = 200;

/// What an operator requests. With `wait` (the default) the result comes when the outcome is known, not at the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
#[non_exhaustive]
pub enum ControlRequest {
    /// How it is.
    Status,
    /// Read the configuration again and replace the workers, slot by slot.
    Reload {
        /// Wait for the outcome.
        #[serde(default = "yes")]
        wait: bool,
    },
    /// Go on as another program, with the same pid and sockets.
    Upgrade {
        /// The program, an absolute path; none: the one it was started as.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        binary: Option<PathBuf>,
        /// Wait for the outcome.
        #[serde(default = "yes")]
        wait: bool,
    },
    /// Run this number of workers.
    Scale {
        /// Wanted number, at least 1.
        workers: usize,
        /// Wait for the outcome.
        #[serde(default = "yes")]
        wait: bool,
    },
    /// Replace the worker of one slot.
    Restart {
        /// Index of the slot, from 0.
        slot: usize,
        /// Wait for the outcome.
        #[serde(default = "yes")]
        wait: bool,
    },
    /// Drain every worker, then end.
    Stop {
        /// Without draining.
        #[serde(default)]
        now: bool,
        /// Wait for the outcome.
        #[serde(default = "yes")]
        wait: bool,
    },
    /// What happened.
    Events {
        /// Only later ones than that with this number.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<u64>,
        /// And what happens from now on, until the client leaves.
        #[serde(default)]
        follow: bool,
    },
}

fn yes() -> bool {
    true
}

impl ControlRequest {
    /// Its name, as typed and sent.
    pub fn command(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Reload { .. } => "reload",
            Self::Upgrade { .. } => "upgrade",
            Self::Scale { .. } => "scale",
            Self::Restart { .. } => "restart",
            Self::Stop { .. } => "stop",
            Self::Events { .. } => "events",
        }
    }
}

/// What a fleet answers: any number of lines, the last of which is final.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ControlReply {
    /// How far it is.
    Progress(CommandProgress),
    /// Something that happened.
    Event(FleetEvent),
    /// How the fleet is: a document with a version of its own. Final.
    Status(Value),
    /// How the request ended. Final.
    Result(CommandResult),
}

impl ControlReply {
    /// Whether nothing more follows for the same request.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Status(_) | Self::Result(_))
    }
}

/// How far a request is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandProgress {
    /// Steps that are done.
    pub completed: usize,
    /// Steps in all.
    pub total: usize,
    /// What was done last, or is being done.
    pub message: String,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandResult {
    /// Whether it was done as requested.
    pub ok: bool,
    /// Exit code of the command line; 0 exactly when `ok`.
    pub exit_code: u8,
    /// What to tell the operator.
    pub message: String,
    /// The same for programs, by name.
    #[serde(default)]
    pub details: Map<String, Value>,
}

impl CommandResult {
    /// It was done.
    pub fn ok(message: impl Into<String>) -> Self {
        Self { ok: true, exit_code: 0, message: message.into(), details: Map::new() }
    }

    /// It was tried, or could not be: exit code 1.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { ok: false, exit_code: 1, message: message.into(), details: Map::new() }
    }

    /// The request was wrong, and nothing was done: exit code 64.
    pub fn rejected(message: impl Into<String>) -> Self {
        Self { ok: false, exit_code: 64, message: message.into(), details: Map::new() }
    }

    /// With a detail for programs.
    #[must_use]
    pub fn with_detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }
}

/// Why a line was not understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProtocolError {
    /// Not a JSON object.
    #[error("not a JSON object on one line: {reason}")]
    Json {
        /// In the parser's words.
        reason: String,
    },
    /// Another version, or none.
    #[error(
        "version {given} of the control protocol is not spoken here, version {VERSION} is: restart this command"
    )]
    Version {
        /// What was given.
        given: String,
    },
    /// The other end speaks only [`PREVIOUS_VERSION`].
    #[error(
        "the fleet runs an earlier release, and this command cannot be sent to it: `upgrade` makes it this release"
    )]
    EarlierRelease,
    /// A request that is none.
    #[error("not a request: {reason}")]
    Request {
        /// In the parser's words.
        reason: String,
    },
    /// A reply that is none.
    #[error("not a reply: {reason}")]
    Reply {
        /// In the parser's words.
        reason: String,
    },
    /// Longer than [`REQUEST_MAX`].
    #[error("a request has at most {REQUEST_MAX} bytes")]
    TooLong,
    /// The client ended in the middle of it.
    #[error("the last request does not end with a newline")]
    Unterminated,
}

/// A request as a line, its newline included.
///
/// # Errors
/// When a path is no Unicode.
pub fn encode_request(request: &ControlRequest) -> Result<Vec<u8>, ProtocolError> {
    encode(request).map_err(|reason| ProtocolError::Request { reason })
}

/// A request as fleets of [`PREVIOUS_VERSION`] read it; none where their replies would have another content.
pub fn encode_previous_request(request: &ControlRequest) -> Option<Vec<u8>> {
    if matches!(request, ControlRequest::Status | ControlRequest::Events { .. }) {
        return None;
    }
    let Value::Object(mut fields) = serde_json::to_value(request).ok()? else { return None };
    let command = fields.remove("command")?;
    fields.insert("verb".into(), command);
    let mut line = serde_json::to_vec(&Envelope { version: PREVIOUS_VERSION, content: &fields }).ok()?;
    line.push(b'\n');
    Some(line)
}

/// A reply as a line, its newline included.
///
/// # Errors
/// When a status cannot be JSON.
pub fn encode_reply(reply: &ControlReply) -> Result<Vec<u8>, ProtocolError> {
    encode(reply).map_err(|reason| ProtocolError::Reply { reason })
}

/// A reply as clients of [`PREVIOUS_VERSION`] read it: an upgrade may put a newer program behind their connection. What
/// has another content by now becomes the request to start the command again.
pub fn encode_previous_reply(reply: &ControlReply) -> Vec<u8> {
    let content = match reply {
        ControlReply::Progress(CommandProgress { completed, total, message }) => {
            json!({"progress": {"done": completed, "total": total, "text": message}})
        }
        ControlReply::Result(CommandResult { ok, exit_code, message, details }) => {
            json!({"verdict": {"ok": ok, "code": exit_code, "sentence": message, "details": details}})
        }
        ControlReply::Event(_) | ControlReply::Status(_) => {
            let error = ProtocolError::Version { given: PREVIOUS_VERSION.to_string() };
            json!({"verdict": {"ok": false, "code": 1, "sentence": error.to_string(), "details": {}}})
        }
    };
    let frame = Envelope { version: PREVIOUS_VERSION, content: &content };
    let mut line = serde_json::to_vec(&frame).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Reads a line as a request.
///
/// # Errors
/// When it is anything else, be it by one unknown field.
pub fn decode_request(line: &[u8]) -> Result<ControlRequest, ProtocolError> {
    let fields = decode(line)?;
    let alone = fields.len() == 1;
    let request = serde_json::from_value(Value::Object(fields)).map_err(|error| invalid_request(&error))?;
    // serde checks no fields of a variant without fields.
    match request {
        ControlRequest::Status if !alone => {
            Err(ProtocolError::Request { reason: "status has no fields".into() })
        }
        request => Ok(request),
    }
}

/// Reads a line as a request of [`VERSION`] or, where its replies have a form there, of [`PREVIOUS_VERSION`].
///
/// During an upgrade workers of the release before still show the operators' page, and scripts still speak as they did.
///
/// # Errors
/// As [`decode_request`].
pub fn decode_versioned_request(line: &[u8]) -> Result<(u32, ControlRequest), ProtocolError> {
    match decode_request(line) {
        Err(ProtocolError::Version { given }) if given == PREVIOUS_VERSION.to_string() => {
            Ok((PREVIOUS_VERSION, decode_previous_request(line)?))
        }
        request => Ok((VERSION, request?)),
    }
}

fn decode_previous_request(line: &[u8]) -> Result<ControlRequest, ProtocolError> {
    let mut fields = parse(line)?;
    fields.remove("version");
    let command = fields.remove("verb");
    if fields.contains_key("command")
        || matches!(command.as_ref().and_then(Value::as_str), Some("status" | "events"))
    {
        return Err(ProtocolError::Version { given: PREVIOUS_VERSION.to_string() });
    }
    fields.extend(command.map(|command| ("command".to_owned(), command)));
    serde_json::from_value(Value::Object(fields)).map_err(|error| invalid_request(&error))
}

/// Reads a line as a reply.
///
/// Results and progress of a fleet of [`PREVIOUS_VERSION`] are read as well: the program may be newer than the fleet that
/// it commands, and an undone upgrade puts the earlier program behind a connection.
///
/// # Errors
/// [`ProtocolError::EarlierRelease`] when such a fleet does not read the request; otherwise when it is anything else.
pub fn decode_reply(line: &[u8]) -> Result<ControlReply, ProtocolError> {
    let fields = match decode(line) {
        Err(ProtocolError::Version { given }) if given == PREVIOUS_VERSION.to_string() => {
            return decode_previous_reply(line);
        }
        fields => fields?,
    };
    serde_json::from_value(Value::Object(fields))
        .map_err(|error| ProtocolError::Reply { reason: quote(&error.to_string()) })
}

fn decode_previous_reply(line: &[u8]) -> Result<ControlReply, ProtocolError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum PreviousReply {
        Progress {
            done: usize,
            total: usize,
            text: String,
        },
        #[serde(rename = "verdict")]
        Result {
            ok: bool,
            #[serde(rename = "code")]
            exit_code: u8,
            #[serde(rename = "sentence")]
            message: String,
            #[serde(default)]
            details: Map<String, Value>,
        },
    }
    let mut fields = parse(line)?;
    fields.remove("version");
    match serde_json::from_value(Value::Object(fields)) {
        Ok(PreviousReply::Progress { done, total, text }) => {
            Ok(ControlReply::Progress(CommandProgress { completed: done, total, message: text }))
        }
        Ok(PreviousReply::Result { ok: false, message, .. }) if message.contains(VERSION_REFUSED) => {
            Err(ProtocolError::EarlierRelease)
        }
        Ok(PreviousReply::Result { ok, exit_code, message, details }) => {
            Ok(ControlReply::Result(CommandResult { ok, exit_code, message, details }))
        }
        Err(_) => Err(ProtocolError::EarlierRelease),
    }
}

fn invalid_request(error: &serde_json::Error) -> ProtocolError {
    ProtocolError::Request { reason: quote(&error.to_string()) }
}

#[derive(Serialize)]
struct Envelope<'a, T> {
    version: u32,
    #[serde(flatten)]
    content: &'a T,
}

fn encode(content: &impl Serialize) -> Result<Vec<u8>, String> {
    let frame = Envelope { version: VERSION, content };
    let mut line = serde_json::to_vec(&frame).map_err(|error| error.to_string())?;
    line.push(b'\n');
    Ok(line)
}

/// The fields of a line.
fn parse(line: &[u8]) -> Result<Map<String, Value>, ProtocolError> {
    serde_json::from_slice(line).map_err(|error| ProtocolError::Json { reason: quote(&error.to_string()) })
}

/// The same, the version checked and taken out.
fn decode(line: &[u8]) -> Result<Map<String, Value>, ProtocolError> {
    let mut fields = parse(line)?;
    match fields.remove("version") {
        Some(version) if version == VERSION => Ok(fields),
        Some(other) => Err(ProtocolError::Version { given: quote(&other.to_string()) }),
        None => Err(ProtocolError::Version { given: "nothing".into() }),
    }
}

/// A part of received text that is short enough to repeat.
fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTE_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(line: &str) -> String {
        decode_request(line.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn requests_come_back_as_they_were() {
        let requests = [
            ControlRequest::Status,
            ControlRequest::Reload { wait: true },
            ControlRequest::Upgrade { binary: Some("/opt/next".into()), wait: false },
            ControlRequest::Upgrade { binary: None, wait: true },
            ControlRequest::Scale { workers: 8, wait: true },
            ControlRequest::Restart { slot: 0, wait: false },
            ControlRequest::Stop { now: true, wait: true },
            ControlRequest::Events { after: Some(7), follow: true },
        ];
        for request in requests {
            let line = encode_request(&request).unwrap();
            assert!(line.ends_with(b"}\n") && line.iter().filter(|byte| **byte == b'\n').count() == 1);
            assert_eq!(decode_request(&line).unwrap(), request);
            let verb = format!("{{\"version\":2,\"command\":\"{}\"", request.command());
            assert!(String::from_utf8(line).unwrap().starts_with(&verb), "{verb}");
        }
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let short = |line: &str| decode_request(line.as_bytes()).unwrap();
        assert_eq!(short(r#"{"version":2,"command":"reload"}"#), ControlRequest::Reload { wait: true });
        assert_eq!(
            short(r#"{"command":"stop","version":2}"#),
            ControlRequest::Stop { now: false, wait: true }
        );
        assert_eq!(
            short(r#"{"version":2,"command":"events"}"#),
            ControlRequest::Events { after: None, follow: false }
        );
    }

    #[test]
    fn a_request_is_parsed_strictly_and_the_reason_reported() {
        let cases = [
            ("", "not a JSON object"),
            ("reload", "not a JSON object"),
            ("[]", "not a JSON object"),
            ("{}", "version nothing"),
            (r#"{"version":3,"command":"reload"}"#, "version 3 of the control protocol is not spoken here"),
            (r#"{"version":1,"verb":"reload"}"#, "restart this command"),
            (r#"{"version":"2","command":"reload"}"#, "version \"2\""),
            (r#"{"version":2}"#, "missing field `command`"),
            (r#"{"version":2,"command":"dance"}"#, "unknown variant `dance`, expected one of `status`"),
            (r#"{"version":2,"command":"scale"}"#, "missing field `workers`"),
            (r#"{"version":2,"command":"scale","workers":-1}"#, "invalid value: integer `-1`"),
            (r#"{"version":2,"command":"reload","force":true}"#, "unknown field `force`"),
            (r#"{"version":2,"command":"status","force":true}"#, "status has no fields"),
        ];
        for (line, expected) in cases {
            assert!(reason(line).contains(expected), "{line}: {}", reason(line));
        }
        let long = format!(r#"{{"version":2,"command":"{}"}}"#, "é".repeat(5000));
        assert!(reason(&long).chars().count() < 250, "a client's text is repeated only in part");
        assert!(reason(&"[".repeat(5000)).contains("not a JSON object"), "depth is bounded");
    }

    #[test]
    fn replies_come_back_as_they_were_and_may_have_grown() {
        let event = FleetEvent::new("worker_ready", 1000, "worker 42 serves slot 3").slot(3).pid(42);
        let replies = [
            ControlReply::Progress(CommandProgress {
                completed: 1,
                total: 2,
                message: "slot 0 serves".into(),
            }),
            ControlReply::Event(event),
            ControlReply::Status(serde_json::json!({"schema": 1, "slots": []})),
            ControlReply::Result(CommandResult::failed("no").with_detail("slot", 3)),
        ];
        for reply in replies {
            let line = encode_reply(&reply).unwrap();
            assert_eq!(decode_reply(&line).unwrap(), reply);
        }
        let grown = r#"{"version":2,"result":{"ok":true,"exit_code":0,"message":"fine","mood":"good"}}"#;
        assert_eq!(decode_reply(grown.as_bytes()).unwrap(), ControlReply::Result(CommandResult::ok("fine")));
        assert!(matches!(decode_reply(b"{\"version\":2,\"song\":1}"), Err(ProtocolError::Reply { .. })));
    }

    #[test]
    fn a_fleet_of_the_version_before_is_commanded_in_its_own_form() {
        let verb = |request| {
            let line = encode_previous_request(&request)?;
            Some(serde_json::from_slice::<Value>(&line).unwrap())
        };
        let upgrade = ControlRequest::Upgrade { binary: Some("/srv/app".into()), wait: true };
        let expected = json!({"version": 1, "verb": "upgrade", "binary": "/srv/app", "wait": true});
        assert_eq!(verb(upgrade), Some(expected));
        let stop = ControlRequest::Stop { now: false, wait: false };
        assert_eq!(verb(stop), Some(json!({"version": 1, "verb": "stop", "now": false, "wait": false})));
        assert_eq!(verb(ControlRequest::Status), None, "its status has another content");
        let read = |line: &str| decode_reply(line.as_bytes());
        let result = CommandResult::ok("upgrade done").with_detail("build", "b");
        let done = r#"{"version":1,"verdict":{"ok":true,"code":0,"sentence":"upgrade done","details":{"build":"b"}}}"#;
        assert_eq!(read(done), Ok(ControlReply::Result(result)));
        let progress = CommandProgress { completed: 1, total: 2, message: "slot 0 serves".into() };
        let line = r#"{"version":1,"progress":{"done":1,"total":2,"text":"slot 0 serves"}}"#;
        assert_eq!(read(line), Ok(ControlReply::Progress(progress)));
        let refused = r#"{"version":1,"verdict":{"ok":false,"code":64,"sentence":"version 2 of the control protocol is not spoken here, version 1 is","details":{}}}"#;
        assert_eq!(read(refused), Err(ProtocolError::EarlierRelease));
        assert_eq!(read(r#"{"version":1,"status":{}}"#), Err(ProtocolError::EarlierRelease));
        assert!(matches!(read(r#"{"version":3,"result":{}}"#), Err(ProtocolError::Version { .. })));
    }

    #[test]
    fn a_client_of_the_version_before_commands_a_fleet_of_this_one() {
        let requests = [
            ControlRequest::Reload { wait: false },
            ControlRequest::Upgrade { binary: Some("/srv/app".into()), wait: true },
            ControlRequest::Scale { workers: 3, wait: true },
            ControlRequest::Restart { slot: 1, wait: true },
            ControlRequest::Stop { now: true, wait: false },
        ];
        for request in requests {
            let line = encode_previous_request(&request).unwrap();
            assert_eq!(decode_versioned_request(&line), Ok((PREVIOUS_VERSION, request)));
        }
        let scale = br#"{"version":2,"command":"scale","workers":3}"#;
        let expected = ControlRequest::Scale { workers: 3, wait: true };
        assert_eq!(decode_versioned_request(scale), Ok((VERSION, expected)));
        let refused = |line: &str| decode_versioned_request(line.as_bytes()).unwrap_err();
        for line in [
            r#"{"version":1,"verb":"status"}"#,
            r#"{"version":1,"verb":"events","follow":true}"#,
            r#"{"version":1,"command":"reload"}"#,
        ] {
            assert_eq!(refused(line), ProtocolError::Version { given: "1".into() }, "{line}");
        }
        assert!(refused(r#"{"version":1,"verb":"dance"}"#).to_string().contains("unknown variant"));
        assert!(refused(r#"{"version":1}"#).to_string().contains("missing field"));
        assert!(refused(r#"{"version":1,"verb":"reload","force":1}"#).to_string().contains("unknown field"));
    }

    #[test]
    fn a_client_of_the_version_before_gets_its_result_in_its_own_form() {
        let read = |reply: &ControlReply| -> Value {
            serde_json::from_slice(&encode_previous_reply(reply)).unwrap()
        };
        let result = ControlReply::Result(CommandResult::ok("8 workers serve").with_detail("workers", 8));
        let details = json!({"workers": 8});
        let expected = json!({"ok": true, "code": 0, "sentence": "8 workers serve", "details": details});
        assert_eq!(read(&result), json!({"version": 1, "verdict": expected}));
        let progress = CommandProgress { completed: 1, total: 2, message: "slot 0 serves".into() };
        let before = json!({"done": 1, "total": 2, "text": "slot 0 serves"});
        assert_eq!(read(&ControlReply::Progress(progress)), json!({"version": 1, "progress": before}));
        let status = read(&ControlReply::Status(json!({})));
        assert!(
            status["verdict"]["sentence"].as_str().unwrap().ends_with("restart this command"),
            "{status}"
        );
    }
}

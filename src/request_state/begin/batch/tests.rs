//! The wire form of a batch.

use crate::counters::commands::CounterIncrement;
use crate::limiter::commands::{LimitParameters, RateLimitCheck};
use crate::request_state::begin::BeginRequest;
use crate::request_state::begin::batch::*;
use crate::sessions::query::{SessionAccess, SessionQuery};

fn session(key: &str) -> SessionQuery {
    SessionQuery {
        key: key.into(),
        generation: None,
        access: SessionAccess::CountView,
        provisional: None,
        idle_ms: 1000,
        absolute_ms: 2000,
    }
}

fn view_entry(key: &str, limits: &[RateLimitCheck]) -> BeginEntry {
    let counters = [CounterIncrement { key: "p:c:total".into(), by: 1 }];
    BeginEntry::new(&BeginRequest { limits, session: Some(&session(key)), counters: &counters, token: "" })
}

fn limit(key: &str) -> RateLimitCheck {
    let kind = LimitParameters::Rate { interval_us: 10, tolerance_us: 20 };
    RateLimitCheck { key: key.into(), parameters: kind, shadow: false, cost: 1 }
}

fn packed(numbers: &[i32]) -> Value {
    Value::Bytes(numbers.iter().flat_map(|number| f64::from(*number).to_le_bytes()).collect())
}

#[test]
fn shared_keys_are_named_once() {
    let limits = [limit("p:l:a")];
    let (one, two) = (view_entry("p:s:1", &limits), view_entry("p:s:2", &limits));
    let args = encode(&[&one, &two], None, Value::from("f"));
    let keys: Vec<_> = args[2..6].iter().map(|key| key.as_string().unwrap()).collect();
    assert_eq!(args[1], Value::Integer(4));
    assert_eq!(keys, ["p:c:total", "p:l:a", "p:s:1", "p:s:2"]);
    assert_eq!(args.last(), Some(&Value::Integer(2)), "the sum of what both add");
    assert!(one.bytes() > "p:s:1p:l:ap:c:total".len());
}

#[test]
fn each_entry_gets_its_part_of_a_shared_result() {
    let limits = [limit("p:l:a")];
    let entries = [view_entry("p:s:1", &limits), view_entry("p:s:2", &limits), view_entry("p:s:3", &limits)];
    let entries: Vec<_> = entries.iter().collect();
    // now, at once; ahead; total; views and creation of the two that were granted.
    let reply = Value::Array(vec![packed(&[7_000, 0, 0, 42, 5, 3, 6, 4]), Value::from("110")]);
    let replies = decode(&entries, reply).unwrap();
    let Ok(BeginReply::Granted { limits, session, counters, .. }) = &replies[1] else {
        panic!("{replies:?}")
    };
    assert_eq!((limits[0].remaining, limits[0].reset_us, counters), (0, 20, &vec![42]));
    assert!(matches!(session, crate::sessions::query::SessionLookup::Found { created_ms: 4, views: 6, .. }));
    let Ok(BeginReply::Granted { counters, .. }) = &replies[0] else { panic!("{replies:?}") };
    assert_eq!(counters, &vec![41]);
    let Ok(BeginReply::Denied { limits }) = &replies[2] else { panic!("{replies:?}") };
    assert_eq!((limits[0].allowed, limits[0].retry_after_us), (false, Some(10)));
}

#[test]
fn a_reply_of_another_form_is_an_error_not_a_panic() {
    let entry = view_entry("p:s:1", &[limit("p:l:a")]);
    let short = packed(&[7, 0, 0, 1]);
    let alone = Value::Array(vec![packed(&[7, 2]), Value::from("")]);
    for reply in [Value::Null, Value::Array(vec![]), Value::Array(vec![Value::Integer(1)]), short, alone] {
        assert!(decode(&[&entry], reply).is_err());
    }
}

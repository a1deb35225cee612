//! The page with what moves on it, in a browser.

use serde_json::{Value, json};

use crate::support::browser::Browser;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::wait;

/// A fleet whose workers take tasks.
pub(crate) fn plan(redis: &TestRedis) -> TestFleetBuilder {
    TestFleetBuilder::on(redis).set("REGATTA_TASKS__CONCURRENCY", "1")
}

/// The page is told where the messages begin: its stream is open, whatever the others do.
pub(crate) const LISTENS: &str = "'last-id' in sessionStorage";

pub(crate) fn open(fleet: &TestFleet) -> Browser {
    let browser = Browser::open(1100, 1500);
    browser.go(&format!("http://{}/", fleet.listen));
    browser
}

/// Fills the form's field and presses its button.
pub(crate) fn submit(browser: &Browser, form: &str, fields: &Value) {
    for (name, value) in fields.as_object().unwrap() {
        browser.run(&format!("document.querySelector('{form} [name={name}]').value = {value}"));
    }
    browser.run(&format!("document.querySelector('{form} button').click()"));
}

/// The lines of the log, the latest first.
pub(crate) fn heard(browser: &Browser) -> Vec<String> {
    let lines =
        browser.run("return [...document.querySelectorAll('.log li span')].map(line => line.textContent)");
    serde_json::from_value(lines).unwrap()
}

/// What the browser complained of: the policy, a script, something missing.
pub(crate) fn complaints(browser: &Browser) -> Vec<String> {
    browser.log().into_iter().filter(|line| !line.contains("ERR_")).collect()
}

/// Sends a message once the one before has come.
pub(crate) fn submit_when_ready(browser: &Browser, message: &str) {
    wait::until("the first message", wait::LONG, || heard(browser).len() == 1);
    submit(browser, "#broadcast-form", &json!({"message": message}));
}

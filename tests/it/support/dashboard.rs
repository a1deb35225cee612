//! A fleet whose operators may sign in.

use serde_json::json;

use crate::support::browser::Browser;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;

pub(crate) const TOKEN: &str = "a token for the tests of today";

/// Two workers that tell Redis of their machine, and whose operators have a token.
pub(crate) fn plan(redis: &TestRedis) -> TestFleetBuilder {
    TestFleetBuilder::on(redis)
        .set("REGATTA_DASHBOARD__TOKEN", TOKEN)
        .set("REGATTA_FLEET__HEARTBEAT_INTERVAL", "200ms")
}

pub(crate) const LANES: &str = "document.querySelectorAll('#instances tbody tr').length";

pub(crate) fn open(browser: &Browser, fleet: &TestFleet) {
    browser.go(&format!("http://{}/fleet", fleet.admin));
    browser.until("the page is live", "document.documentElement.dataset.link === 'live'");
}

/// Presses the button that says this.
pub(crate) fn press(browser: &Browser, says: &str) {
    let find = format!(
        "[...document.querySelectorAll('button')].find(button => button.checkVisibility() && button.textContent.startsWith({says:?}))"
    );
    assert_eq!(browser.run(&format!("return !!{find}")), true, "there is no button {says:?}");
    browser.run(&format!("{find}.click()"));
}

pub(crate) fn sign_in(browser: &Browser, token: &str) {
    browser.run(&format!("document.querySelector('#operators-token').value = {token:?}"));
    press(browser, "Sign in");
}

pub(crate) fn nothing_failed(browser: &Browser) {
    let failed = browser.run(
        "return performance.getEntriesByType('resource').filter(entry => entry.responseStatus >= 400).map(entry => entry.name)",
    );
    assert_eq!(failed, json!([]), "every file of the page was there");
}

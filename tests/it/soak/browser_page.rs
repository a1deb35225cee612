//! The page as people see it.

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::browser::Browser;
use crate::support::client::{CookieClient, Request};
use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::TestRedis;
use crate::support::wait;

/// The number that an element of the page shows.
fn shown(browser: &Browser, selector: &str) -> u64 {
    let text = browser.run(&format!("return document.querySelector({selector:?})?.textContent"));
    let text = text.as_str().unwrap_or_else(|| panic!("the page has no {selector}"));
    text.trim().parse().unwrap_or_else(|_| panic!("{selector} shows {text:?}"))
}

#[test]
fn a_browser_sees_its_views_count_up_and_its_worker_vary() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(4).start();
    let browser = Browser::open(1280, 900);
    let workers: BTreeSet<_> = fleet.workers().into_iter().map(u64::from).collect();
    let mut served = BTreeSet::new();
    for views in 1..=16 {
        browser.go(&format!("http://{}/", fleet.listen));
        assert_eq!(shown(&browser, "#views"), views);
        let pid = shown(&browser, "#pid");
        assert!(workers.contains(&pid), "{pid}");
        served.insert(pid);
    }
    assert!(served.len() > 1, "16 loads met only {served:?}");
    let problems = browser.run(
        "return performance.getEntriesByType('resource').filter(entry => entry.responseStatus >= 400).map(entry => entry.name)",
    );
    assert_eq!(problems, json!([]), "every asset of the page was there");
    let styled = browser
        .run("return [...document.styleSheets].reduce((sum, sheet) => sum + sheet.cssRules.length, 0)");
    assert!(
        styled.as_u64().is_some_and(|rules| rules > 5),
        "the policy lets the page's own style through: {styled}"
    );
    browser.screenshot("page.png");
}

#[test]
fn the_page_fits_a_phone() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let browser = Browser::open(500, 900);
    browser.narrow(360, 740);
    browser.go(&format!("http://{}/", fleet.listen));
    let overflow = browser.run("return document.documentElement.scrollWidth - window.innerWidth");
    assert!(overflow.as_i64().is_some_and(|pixels| pixels <= 0), "{overflow} pixels stand out to the right");
    browser.screenshot("phone.png");
}

/// Sends the form whose button says this, and waits for the page it leads to.
fn submit(browser: &Browser, button: &str, leads_to: &str) {
    let find =
        format!("[...document.querySelectorAll('button')].find(button => button.textContent === {button:?})");
    browser.run(&format!("{find}.click()"));
    wait::until(&format!("{button} leads to {leads_to}"), wait::LONG, || {
        browser.run("return location.pathname") == leads_to
    });
}

#[test]
fn a_browser_logs_in_looks_at_its_sessions_and_logs_out() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let browser = Browser::open(1000, 800);
    let text = |selector: &str| browser.text(selector);
    browser.go(&format!("http://{}/login", fleet.listen));
    browser.screenshot("login.png");
    browser.run("document.querySelector('#name').value = 'Ann'");
    submit(&browser, "Log in", "/me");
    assert!(text(".lead").contains("Ann"), "{}", text(".lead"));
    browser.screenshot("me.png");
    let mut elsewhere = CookieClient::default();
    let login = Request::post("/login").header("User-Agent", "Another browser, on a boat");
    assert_eq!(
        elsewhere.request(fleet.listen, login.body("application/json", b"{\"name\":\"Ann\"}")).status,
        200
    );
    browser.go(&format!("http://{}/me/sessions", fleet.listen));
    browser.screenshot("sessions.png");
    assert_eq!(browser.run("return document.querySelectorAll('.sessions li').length"), 2);
    browser.run("document.querySelector('.sessions form button').click()");
    wait::until("the other one is ended", wait::LONG, || {
        browser.run("return document.querySelectorAll('.sessions li').length") == 1
    });
    assert_eq!(elsewhere.request(fleet.listen, Request::get("/me")).status, 401);
    browser.go(&format!("http://{}/me", fleet.listen));
    submit(&browser, "Log out", "/");
    browser.go(&format!("http://{}/me", fleet.listen));
    assert_eq!(browser.run("return location.pathname"), "/login", "nobody is logged in");
}

//! Each page in a real browser, once: it works, it moves, and its buttons do what they say. More of it is in `soak`.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::browser::Browser;
use crate::support::client::{CookieClient, Request};
use crate::support::fleet::TestFleetBuilder;
use crate::support::live_page::{LISTENS, complaints, heard, open, plan, submit, submit_when_ready};
use crate::support::redis::TestRedis;
use crate::support::stream::try_publish;
use crate::support::wait;

/// The number that an element of the page shows.
fn shown(browser: &Browser, selector: &str) -> u64 {
    let text = browser.run(&format!("return document.querySelector({selector:?})?.textContent"));
    let text = text.as_str().unwrap_or_else(|| panic!("the page has no {selector}"));
    text.trim().parse().unwrap_or_else(|_| panic!("{selector} shows {text:?}"))
}

#[test]
fn a_browser_sees_its_views_count_up_and_its_worker_vary() {
    let redis = TestRedis::shared();
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

/// Sends the form whose button says this, and waits for the page it leads to.
fn press(browser: &Browser, button: &str, leads_to: &str) {
    let find =
        format!("[...document.querySelectorAll('button')].find(button => button.textContent === {button:?})");
    browser.run(&format!("{find}.click()"));
    wait::until(&format!("{button} leads to {leads_to}"), wait::LONG, || {
        browser.run("return location.pathname") == leads_to
    });
}

#[test]
fn a_browser_logs_in_looks_at_its_sessions_and_logs_out() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).start();
    let browser = Browser::open(1000, 800);
    let text = |selector: &str| browser.text(selector);
    browser.go(&format!("http://{}/login", fleet.listen));
    browser.screenshot("login.png");
    browser.run("document.querySelector('#name').value = 'Ann'");
    press(&browser, "Log in", "/me");
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
    press(&browser, "Log out", "/");
    browser.go(&format!("http://{}/me", fleet.listen));
    assert_eq!(browser.run("return location.pathname"), "/login", "nobody is logged in");
}

#[test]
fn a_message_is_heard_in_another_window_once_and_as_it_was_sent() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).workers(2).start();
    let (ann, bob) = (open(&fleet), open(&fleet));
    for browser in [&ann, &bob] {
        browser.until("both are here", "document.querySelector('#here').textContent === '2'");
    }
    let markup = "<img src=x onerror=alert(1)> & \"so\"";
    submit(&ann, "#broadcast-form", &json!({"message": markup}));
    submit_when_ready(&bob, "second");
    for browser in [&ann, &bob] {
        wait::until("both are heard", wait::LONG, || heard(browser).len() == 2);
        assert!(heard(browser).contains(&markup.to_owned()), "{:?}", heard(browser));
        assert_eq!(browser.run("return document.querySelectorAll('.log img').length"), 0);
        assert_eq!(browser.run("return document.querySelector('#broadcast-form [name=message]').value"), "");
    }
    ann.screenshot("live.png");
    // Another page of the same tab goes on where the last one was.
    let last = heard(&bob);
    bob.go("about:blank");
    submit(&ann, "#broadcast-form", &json!({"message": "third"}));
    wait::until("Ann hears it", wait::LONG, || heard(&ann).len() == 3);
    bob.go(&format!("http://{}/", fleet.listen));
    wait::until("Bob hears what he missed", wait::LONG, || heard(&bob).len() == 3);
    assert_eq!((heard(&bob)[0].as_str(), &heard(&bob)[1..]), ("third", &last[..]));
    for browser in [&ann, &bob] {
        assert_eq!(complaints(browser), Vec::<String>::new());
    }
    drop(bob);
    ann.until("one is left", "document.querySelector('#here').textContent === '1'");
}

#[test]
fn an_open_page_misses_nothing_over_a_reload_of_the_fleet() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).workers(2).start();
    let browser = open(&fleet);
    browser.until("it listens", LISTENS);
    fleet.signal(Signal::SIGHUP);
    let (mut sent, mut unknown) = (Vec::new(), Vec::new());
    wait::until("the fleet is another one", wait::LONG, || {
        let message = format!("message {}", sent.len() + unknown.len());
        match try_publish(fleet.listen, "news", &message).status {
            202 => sent.insert(0, message),
            // On a machine this busy Redis may be late: then no one knows whether it was sent.
            status => {
                assert_eq!(status, 503);
                unknown.push(message);
            }
        }
        !fleet.log_lines("reload done").is_empty()
    });
    assert!(sent.len() > unknown.len(), "{} sent, {} unknown", sent.len(), unknown.len());
    let known = || heard(&browser).into_iter().filter(|line| !unknown.contains(line)).collect::<Vec<_>>();
    // The page shows the last twenty, of which some may be unknown.
    let least = sent.len().min(20 - unknown.len());
    wait::until("all was heard", wait::LONG, || {
        let known = known();
        known.len() >= least && known == sent[..known.len()]
    });
}

#[test]
fn a_task_shows_its_progress_its_result_and_can_be_cancelled() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).workers(2).start();
    let browser = open(&fleet);
    submit(&browser, "#task-form", &json!({"kind": "fibonacci", "n": "10000"}));
    browser.until("it is done", "document.querySelector('.card')?.dataset.state === 'done'");
    browser.until("its result", "document.querySelector('.card .outcome').textContent !== ''");
    let outcome = browser.text(".card .outcome");
    assert_eq!(outcome, "3364476487643178…3310059947366875 (2\u{202f}090 digits)");
    assert_eq!(browser.run("return document.querySelector('.card progress').value"), 100);
    assert_eq!(browser.run("return document.querySelector('.card .cancel').hidden"), true);

    submit(&browser, "#task-form", &json!({"kind": "primes", "n": "20000000"}));
    browser.until("it runs", "document.querySelector('.card')?.dataset.state === 'running'");
    browser.until("it moves", "document.querySelector('.card progress').value > 0");
    browser.screenshot("tasks.png");
    browser.run("document.querySelector('.card .cancel button').click()");
    browser.until("it is cancelled", "document.querySelector('.card').dataset.state === 'cancelled'");
    assert_eq!(browser.run("return document.querySelectorAll('.card').length"), 2);

    assert_eq!(complaints(&browser), Vec::<String>::new());
    submit(&browser, "#task-form", &json!({"kind": "fibonacci", "n": "100001"}));
    browser.until(
        "a mistake is told",
        "document.querySelector('#wrong').textContent.includes('allows 0 to 100000')",
    );
    assert_eq!(complaints(&browser).len(), 1, "the answer's 400, and nothing else");
    // The next page of this tab remembers its tasks.
    browser.go(&format!("http://{}/", fleet.listen));
    browser.until("both are there", "document.querySelectorAll('.card').length === 2");
    browser.run("document.querySelector('.card h3 a').click()");
    browser.until("its page", "location.pathname.startsWith('/tasks/')");
    assert_eq!(browser.text(".card .state").split(' ').next(), Some("cancelled"));
    assert_eq!(complaints(&browser), Vec::<String>::new());
}

#[test]
fn the_page_is_small() {
    let redis = TestRedis::shared();
    let fleet = plan(&redis).start();
    let browser = open(&fleet);
    let weights = browser.run(
        "const [page] = performance.getEntriesByType('navigation');
         const parts = performance.getEntriesByType('resource').filter(part => /\\.(js|css|svg)$/.test(part.name));
         return [page, ...parts].map(part => [part.name.split('/').pop() || '/', part.encodedBodySize])",
    );
    let weights: Vec<(String, u64)> = serde_json::from_value(weights).unwrap();
    let total: u64 = weights.iter().map(|(_, bytes)| bytes).sum();
    let wait = browser.run("const [page] = performance.getEntriesByType('navigation'); return page.responseStart - page.requestStart");
    eprintln!("page: {total} bytes in all, {weights:?}; first byte after {wait} ms");
    assert!(total < 48 * 1024 && weights.len() >= 3, "{weights:?}");
    let foreign = browser.run(
        "return performance.getEntriesByType('resource').map(part => part.name).filter(name => !name.startsWith(location.origin))",
    );
    assert_eq!(foreign, json!([]), "nothing comes from elsewhere");
}

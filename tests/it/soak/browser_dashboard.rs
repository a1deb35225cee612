//! The operators' page as people see and use it, in a real browser.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::browser::Browser;
use crate::support::client::{CookieClient, Request};
use crate::support::dashboard::{TOKEN, plan};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::task_fleet as fleet;
use crate::support::{client, process, wait};

fn open(browser: &Browser, fleet: &TestFleet) {
    browser.go(&format!("http://{}/fleet", fleet.admin));
    browser.until("the page is live", "document.documentElement.dataset.link === 'live'");
}

/// Presses the button that says this.
fn press(browser: &Browser, says: &str) {
    let find = format!(
        "[...document.querySelectorAll('button')].find(button => button.checkVisibility() && button.textContent.startsWith({says:?}))"
    );
    assert_eq!(browser.run(&format!("return !!{find}")), true, "there is no button {says:?}");
    browser.run(&format!("{find}.click()"));
}

fn sign_in(browser: &Browser, token: &str) {
    browser.run(&format!("document.querySelector('#operators-token').value = {token:?}"));
    press(browser, "Sign in");
}

const LANES: &str = "document.querySelectorAll('#instances tbody tr').length";

fn nothing_failed(browser: &Browser) {
    let failed = browser.run(
        "return performance.getEntriesByType('resource').filter(entry => entry.responseStatus >= 400).map(entry => entry.name)",
    );
    assert_eq!(failed, json!([]), "every file of the page was there");
}

#[test]
fn an_operator_signs_in_scales_reloads_restarts_and_signs_out() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).start();
    let browser = Browser::open(1280, 1500);
    open(&browser, &fleet);
    nothing_failed(&browser);
    assert_eq!(browser.run(&format!("return {LANES}")), 2);
    assert_eq!(browser.run("return document.querySelectorAll('form').length"), 1, "nothing but the sign-in");

    sign_in(&browser, "no token that anybody has");
    browser.until("the token is refused", "document.querySelector('.wrong') !== null");
    assert!(browser.text(".wrong").contains("not the token"));
    sign_in(&browser, TOKEN);
    browser.until("the buttons are there", "document.querySelector('#workers') !== null");
    assert_eq!(browser.run("return document.cookie"), "", "no script sees the cookie");

    browser.run("document.querySelector('#workers').value = 3");
    press(&browser, "Scale");
    browser.until("the third lane is there", &format!("{LANES} === 3"));
    browser.until("the verdict is told", "document.querySelector('.flash')?.dataset.is === 'ok'");
    assert!(browser.text(".flash").starts_with("3 workers serve"), "{}", browser.text(".flash"));

    press(&browser, "Reload");
    browser.until(
        "every lane has a worker of generation 2",
        "document.querySelector('.flash')?.textContent.startsWith('reload') && \
         [...document.querySelectorAll('[data-text=generation]')].every(shown => ['2', ''].includes(shown.textContent))",
    );
    open(&browser, &fleet);
    assert_eq!(browser.run("return document.querySelector('.flash')"), json!(null), "a verdict is told once");

    let pid = "document.querySelector('#instances tbody tr .pid').textContent";
    let before = browser.run(&format!("return {pid}"));
    press(&browser, "Restart");
    browser.until("slot 0 has another worker", &format!("{pid} !== {before}"));
    browser.until(
        "its reason is told",
        "document.querySelector('#instances tbody tr').textContent.includes('operator')",
    );
    browser.screenshot("fleet-signed-in.png");
    press(&browser, "Sign out");
    browser.until("the buttons are gone", "document.querySelector('#operators-token') !== null");
    assert_eq!(browser.run("return document.querySelectorAll('#restart, #workers, .act').length"), 0);
}

#[test]
fn what_happens_is_seen_while_it_happens() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).start();
    let browser = Browser::open(1280, 1500);
    open(&browser, &fleet);
    // What is focused and what is selected stays: rows are filled, not drawn anew.
    browser.run("window.first = document.querySelector('#instances tbody tr')");
    let victim = fleet.workers()[0];
    process::signal(victim, Signal::SIGKILL);
    browser.until(
        "the restart and its reason are in the slot's lane",
        "[...document.querySelectorAll('#instances tbody tr')].some(lane => lane.textContent.includes('signal') && \
         lane.querySelector('[data-text=restarts]').textContent === '1')",
    );
    browser.until(
        "the log tells it",
        &format!("[...document.querySelectorAll('.events li')].some(line => line.textContent.includes('worker crashed') && line.textContent.includes('{victim}'))"),
    );
    assert_eq!(browser.run("return window.first.isConnected"), true);
    let mut visitor = CookieClient::default();
    let shown = |name: &str| format!("document.querySelector('dd[data-text={name}]').textContent");
    visitor.view(fleet.listen);
    // The session is made when its ticket comes back.
    visitor.view(fleet.listen);
    browser.until(
        "the views and their session are counted",
        &format!("{} === '2' && {} === '1'", shown("views"), shown("sessions")),
    );
    browser.until(
        "requests make a line",
        "document.querySelector('[data-path=rate_path]').getAttribute('d').includes('L')",
    );
    fleet.signal(Signal::SIGTTIN);
    browser.until("the third lane appears", &format!("{LANES} === 3"));
    fleet.signal(Signal::SIGTTOU);
    browser.until("and is gone again", &format!("{LANES} === 2"));
}

#[test]
fn the_page_survives_its_worker() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).start();
    let browser = Browser::open(1280, 900);
    open(&browser, &fleet);
    fleet.signal(Signal::SIGHUP);
    browser.until(
        "the page goes on and shows the new generation",
        "document.documentElement.dataset.link === 'live' && \
         document.querySelector('[data-text=state_text]').textContent.includes('generation 2')",
    );
}

#[test]
fn other_machines_are_shown_with_their_figures() {
    let redis = TestRedis::start();
    let shared = |plan: TestFleetBuilder| plan.set("REGATTA_REDIS__PREFIX", "shared");
    let (one, two) = (shared(plan(&redis)).start(), shared(plan(&redis).workers(1)).start());
    let browser = Browser::open(1280, 1500);
    open(&browser, &one);
    browser.until("both are there", "document.querySelectorAll('.instance').length === 2");
    two.get("/hello");
    browser.until(
        "the other one's worker has a memory and a state",
        "document.querySelectorAll('.instance')[1].textContent.includes('MiB') && \
         document.querySelectorAll('.instance')[1].querySelector('.tone').dataset.is === 'ok'",
    );
    browser.screenshot("fleet-instances.png");
    let pid = two.workers()[0];
    assert_eq!(browser.text(".instance + .instance .pid"), pid.to_string());
    drop(two);
    browser.until("it has gone", "document.querySelectorAll('.instance').length === 1");
}

/// Texts whose contrast is less than WCAG's AA asks for, 4.5 to 1, 3 to 1 where they are large.
const PALE: &str = r"
    const light = (color) => {
        const [r, g, b] = color.match(/[\d.]+/g).map((part) => {
            const share = part / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (el) => {
        for (; el; el = el.parentElement) {
            const color = getComputedStyle(el).backgroundColor;
            if (!color.endsWith(', 0)')) return color;
        }
        return 'rgb(255, 255, 255)';
    };
    const says = (el) => [...el.childNodes].some((node) => node.nodeType === 3 && node.data.trim() !== '');
    return [...document.querySelectorAll('body *')].filter((el) => el.checkVisibility() && says(el)).map((el) => {
        const style = getComputedStyle(el);
        const [dim, bright] = [light(style.color), light(ground(el))].sort((a, b) => a - b);
        const large = parseFloat(style.fontSize) >= 24;
        return [(bright + 0.05) / (dim + 0.05) / (large ? 3 : 4.5), el.outerHTML.slice(0, 80)];
    }).filter(([share]) => share < 1);";

#[test]
fn it_is_whole_without_a_script_and_readable_on_a_phone() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).workers(3).start();
    for _ in 0..3 {
        fleet.get("/");
    }
    let browser = Browser::open(1280, 1500);
    let over = Arc::new(AtomicBool::new(false));
    let load = std::thread::spawn({
        let (listen, over) = (fleet.listen, Arc::clone(&over));
        move || {
            for count in 0_u64.. {
                if over.load(Relaxed) {
                    break;
                }
                drop(client::once(listen, Request::get(if count % 5 == 0 { "/" } else { "/hello" })));
                wait::let_pass(Duration::from_millis(1 + (count / 100) % 7));
            }
        }
    });
    open(&browser, &fleet);
    browser.until(
        "some seconds are drawn",
        "document.querySelector('[data-path=rate_path]').getAttribute('d').split('L').length > 9",
    );
    browser.screenshot("fleet-light.png");
    assert_eq!(browser.run(PALE), json!([]), "by day");
    browser.likes("dark");
    browser.screenshot("fleet-dark.png");
    assert_eq!(browser.run(PALE), json!([]), "by night");
    browser.narrow(360, 2600);
    let overflow = browser.run("return document.documentElement.scrollWidth - window.innerWidth");
    assert!(overflow.as_i64().is_some_and(|pixels| pixels <= 0), "{overflow} pixels stand out to the right");
    browser.screenshot("fleet-phone-dark.png");
    browser.likes("light");
    browser.screenshot("fleet-phone.png");
    over.store(true, Relaxed);
    load.join().unwrap();
    let page = fleet.operator("/fleet").text();
    assert!(!page.contains("style=") && !page.contains("http-equiv") && !page.contains("<script>"), "{page}");
    for (slot, pid) in fleet.ready() {
        assert!(
            page.contains(&format!("<span class=\"pid\" data-text=\"pid\">{pid}</span>")),
            "{slot}: {page}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_are_seen_to_run_and_to_be_given_up() {
    let redis = TestRedis::start();
    let plan = plan(&redis).example("faulty").set("REGATTA_TASKS__MAX_ATTEMPTS", "1");
    let fleet = plan.set("REGATTA_TASKS__CONCURRENCY", "1").workers(2).start();
    let tasks = fleet::client(&redis, &fleet).await;
    tasks.enqueue("mishap", &"again").await.unwrap();
    for _ in 0..4 {
        tasks.enqueue("nap", &20_000).await.unwrap();
    }
    let browser = Browser::open(1280, 1500);
    open(&browser, &fleet);
    browser.until("two run, each with its bar", "document.querySelectorAll('.tasks progress').length === 2");
    browser
        .until("two wait", "document.querySelector('[data-text=queue]').textContent.startsWith('2 waiting')");
    browser.until(
        "one was given up, with the reason",
        "document.querySelector('.dead li').textContent.includes('attempt 1')",
    );
    let percent = "document.querySelector('.tasks progress').value";
    let before = browser.run(&format!("return {percent}")).as_u64().unwrap();
    browser.until("it gets on", &format!("{percent} > {before}"));
    browser.screenshot("fleet-tasks.png");
}

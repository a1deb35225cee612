//! What moves on the page, as people see it: several browsers, with the script and without.

use serde_json::{Value, json};

use crate::support::browser::Browser;
use crate::support::fleet::TestFleetBuilder;
use crate::support::live_page::{LISTENS, complaints, heard, open, plan, submit};
use crate::support::redis::TestRedis;
use crate::support::stream::{Stream, publish};
use crate::support::wait;

#[test]
fn a_page_behind_another_tab_gives_its_connections_back_and_misses_nothing() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).workers(1).start();
    let browser = open(&fleet);
    browser.until("it listens", LISTENS);
    let mut watcher = Stream::open(fleet.listen, "/live");
    let mut here = || serde_json::from_str::<Value>(&watcher.event().data).unwrap()["here"].as_u64();
    wait::until("the page is here", wait::LONG, || here() == Some(1));
    browser.hidden(true);
    wait::until("nobody is here", wait::LONG, || here() == Some(0));
    publish(fleet.listen, "news", "before");
    browser.hidden(false);
    wait::until("who had heard nothing hears it", wait::LONG, || heard(&browser) == ["before"]);
    wait::until("the page is here again", wait::LONG, || here() == Some(1));
    browser.hidden(true);
    wait::until("nobody is here", wait::LONG, || here() == Some(0));
    publish(fleet.listen, "news", "meanwhile");
    browser.hidden(false);
    wait::until("it is heard, too", wait::LONG, || heard(&browser) == ["meanwhile", "before"]);
}

#[test]
fn many_running_tasks_leave_the_buttons_alive() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).workers(1).start();
    let browser = open(&fleet);
    browser.until("it listens", LISTENS);
    let states = "[...document.querySelectorAll('.card')].map(card => card.dataset.state)";
    // The fifth takes the first one's card away.
    for n in 1..=5 {
        submit(&browser, "#task-form", &json!({"kind": "primes", "n": "20000000"}));
        browser.until(
            "its card is there and the button rests no more",
            &format!(
                "{states}.length === {} && !document.querySelector('#task-form button').disabled",
                n.min(4)
            ),
        );
        browser.until("it is known how it stands", &format!("{states}.every(state => state)"));
    }
    submit(&browser, "#broadcast-form", &json!({"message": "still heard"}));
    wait::until("it is heard", wait::LONG, || heard(&browser) == ["still heard"]);
    browser.run("document.querySelectorAll('.card .cancel button').forEach(button => button.click())");
    browser.until("all are cancelled", &format!("{states}.every(state => state === 'cancelled')"));
    assert_eq!(complaints(&browser), Vec::<String>::new());
}

#[test]
fn the_map_moves_with_the_fleet() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).workers(2).start();
    let browser = open(&fleet);
    browser.until("the stream is open", "!document.querySelector('#here').parentNode.hidden");
    let total: u64 = browser.text("#total").parse().unwrap();
    let before = browser.run("return document.querySelector('.lane.yours .count').textContent");
    (0..40).for_each(|_| _ = fleet.get("/"));
    browser
        .until("views rise", &format!("document.querySelector('#total').textContent === '{}'", total + 40));
    browser.until(
        "boats move",
        &format!("document.querySelector('.lane.yours .count').textContent !== {before}"),
    );
    assert_eq!(browser.text("#views"), "1", "others' views are theirs");
    let victim = fleet.workers()[0];
    fleet.crash(victim);
    let pids = "[...document.querySelectorAll('.lane')].map(lane => +lane.dataset.pid)";
    browser
        .until("a lane gets its new worker", &format!("!{pids}.includes({victim}) && {pids}.length === 2"));
    assert_eq!(complaints(&browser), Vec::<String>::new());
}

#[test]
fn a_task_on_its_own_page_goes_on_by_itself() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).workers(2).start();
    let browser = Browser::open(1100, 1000);
    browser.go(&format!("http://{}/tasks", fleet.listen));
    submit(&browser, "#task-form", &json!({"kind": "fibonacci", "n": "20000"}));
    browser.until("its page", "location.pathname.startsWith('/tasks/')");
    browser.until("it is done", "document.querySelector('.card').dataset.state === 'done'");
    browser.until("the whole result", "document.querySelector('.whole')?.textContent.length === 4180");
    browser.screenshot("task.png");
    assert_eq!(complaints(&browser), Vec::<String>::new());
}

#[test]
fn the_page_is_readable_by_day_by_night_and_on_a_telephone() {
    let redis = TestRedis::start();
    let fleet = plan(&redis).workers(4).start();
    let browser = open(&fleet);
    submit(&browser, "#broadcast-form", &json!({"message": "Ahoy! ".repeat(40).trim()}));
    submit(&browser, "#task-form", &json!({"n": "5000"}));
    browser.until("it is done", "document.querySelector('.card')?.dataset.state === 'done'");
    wait::until("it is heard", wait::LONG, || heard(&browser).len() == 1);
    for (scheme, width) in [("light", 1100), ("dark", 1100), ("light", 360), ("dark", 360)] {
        browser.likes(scheme);
        browser.narrow(width, 2400);
        let overflow = browser.run("return document.documentElement.scrollWidth - window.innerWidth");
        assert!(overflow.as_i64().is_some_and(|pixels| pixels <= 0), "{scheme} {width}: {overflow}");
        assert_eq!(browser.run(CONTRAST), json!([]), "{scheme} {width}");
        let moves = "return [...document.querySelectorAll('*')].filter(one => parseFloat(getComputedStyle(one).transitionDuration) || getComputedStyle(one).animationName !== 'none').length";
        assert_eq!(browser.run(moves), 0, "nothing moves for whoever does not like it");
        browser.screenshot(&format!("live-{scheme}-{width}.png"));
    }
    let named = "return [...document.querySelectorAll('input:not([type=hidden]), select, progress')].filter(field => !field.labels.length).length";
    assert_eq!(browser.run(named), 0, "every field has a label");
    let targets = "return [...document.querySelectorAll('main button, main a.button, main input:not([type=hidden]), main select')].filter(one => one.offsetParent && one.offsetHeight < 24).length";
    assert_eq!(browser.run(targets), 0, "whatever is pressed is large enough");
}

/// Texts whose contrast is below what WCAG 2 asks for (level AA): each with its ratio.
const CONTRAST: &str = r"
    const channel = value => (value /= 255) <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
    const numbers = colour => colour.match(/[\d.]+/g).map(Number);
    const light = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
    const ground = element => {
        for (let at = element; at; at = at.parentElement) {
            const colour = numbers(getComputedStyle(at).backgroundColor);
            if (colour.length < 4 || colour[3] > 0) return colour;
        }
        return [255, 255, 255];
    };
    const faults = [];
    for (const element of document.querySelectorAll('body *')) {
        const text = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
        if (!text || !element.offsetParent || element.closest('.spoken')) continue;
        const style = getComputedStyle(element), size = parseFloat(style.fontSize);
        const [one, two] = [light(numbers(style.color)), light(ground(element))].sort((a, b) => b - a);
        const ratio = (one + .05) / (two + .05), large = size >= 24 || size >= 18.66 && style.fontWeight >= 700;
        if (ratio < (large ? 3 : 4.5)) faults.push(`${element.className} ${element.tagName} ${ratio.toFixed(2)}`);
    }
    return faults;
";

#[test]
fn a_total_that_redis_does_not_say_is_not_shown_and_none_goes_back() {
    let mut redis = TestRedis::start_with(&["--appendonly", "yes"]);
    let fleet =
        TestFleetBuilder::on(&redis).workers(1).set("REGATTA_REDIS__SILENCE_TIMEOUT", "100ms").start();
    (0..5).for_each(|_| _ = fleet.get("/"));
    let browser = Browser::open(1000, 800);
    browser.go(&format!("http://{}/", fleet.listen));
    browser.until("the stream is open", "!document.querySelector('#here').parentNode.hidden");
    assert_eq!(browser.text("#total"), "6");
    redis.kill();
    browser.until("no number is shown", "document.querySelector('#total').textContent === '–'");
    assert_eq!(browser.run("return document.querySelector('#here').parentNode.hidden"), true);
    redis.restart();
    browser.until("it is shown again", "document.querySelector('#total').textContent === '6'");
    // What an event says that is older than the page.
    let total = redis.keys().into_iter().find(|key| key.ends_with("@views")).unwrap();
    redis.cli(&["SET", &total, "2"]);
    let answered = |browser: &Browser| browser.text(".lane .count").parse::<u64>().unwrap();
    let before = answered(&browser);
    assert_eq!(fleet.get("/hello").status, 200);
    wait::until("the next event is shown", wait::LONG, || answered(&browser) > before);
    assert_eq!(browser.text("#total"), "6");
    // A page from such a time has no number of its own, and says so.
    redis.kill();
    wait::until("Redis is away", wait::LONG, || fleet.get("/").status == 503);
    browser.go(&format!("http://{}/", fleet.listen));
    assert!(browser.text(".uncounted").contains("cannot be shown"), "{}", browser.text(".uncounted"));
    // The stream's last event may be from a second before.
    browser.until("no number is shown", "document.querySelector('#total').textContent === '–'");
    browser.screenshot("uncounted.png");
    redis.restart();
    browser.until("the total is shown", "/^[0-9]+$/.test(document.querySelector('#total').textContent)");
}

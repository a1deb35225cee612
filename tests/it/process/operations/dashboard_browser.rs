//! The operators' page in a real browser, once: what is pressed is done. More of it is in `soak`.

use serde_json::json;

use crate::support::browser::Browser;
use crate::support::dashboard::{LANES, TOKEN, nothing_failed, open, plan, press, sign_in};
use crate::support::redis::TestRedis;

#[test]
fn an_operator_signs_in_scales_reloads_restarts_and_signs_out() {
    let redis = TestRedis::shared();
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

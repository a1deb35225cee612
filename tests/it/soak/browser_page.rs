//! The page as people see it.

use crate::support::browser::Browser;
use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::TestRedis;

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

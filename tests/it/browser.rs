//! The page as people see it: a real browser, driven over `WebDriver` (W3C), of which only four commands are needed.

use std::collections::BTreeSet;
use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;

use crate::support::client::Connection;
use crate::support::client::Request;
use crate::support::client::Visitor;
use crate::support::fleet::Plan;
use crate::support::redis::RedisServer;
use crate::support::wait;

/// A headless Chromium with a profile of its own.
struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    _profile: TempDir,
}

impl Browser {
    fn open(width: u32, height: u32) -> Self {
        let profile = TempDir::with_prefix("browser").unwrap();
        let mut driver = Command::new("chromedriver");
        driver.arg("--port=0").env("HOME", profile.path()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = driver.spawn().expect("chromedriver is installed (`make test` does it)");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| {
            line.ok()?.split("successfully on port ").nth(1)?.trim_end_matches('.').parse().ok()
        });
        let address = SocketAddr::from(([127, 0, 0, 1], port.expect("chromedriver says its port")));
        let mut browser = Self { driver, address, session: String::new(), _profile: profile };
        let profile = format!("--user-data-dir={}", browser._profile.path().display());
        let size = format!("--window-size={width},{height}");
        // Without a sandbox because tests run as root in containers; the only page it sees is ours.
        let args =
            ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", &profile, &size];
        let options = json!({"args": args});
        let wanted = json!({"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}});
        let opened = browser.command("POST", "/session", &wanted);
        browser.session = format!("/session/{}", opened["sessionId"].as_str().unwrap());
        browser
    }

    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut connection = Connection::open(self.address).unwrap();
        connection.patience(std::time::Duration::from_secs(60));
        let mut request = Request::new(method, path);
        if method == "POST" {
            request = request.body("application/json", body.to_string().as_bytes());
        }
        let mut response = connection.ask(&request).unwrap().json();
        assert!(response["value"]["error"].is_null(), "{path}: {response}");
        response["value"].take()
    }

    fn go(&self, url: &str) {
        self.command("POST", &format!("{}/url", self.session), &json!({"url": url}));
    }

    fn run(&self, script: &str) -> Value {
        self.command(
            "POST",
            &format!("{}/execute/sync", self.session),
            &json!({"script": script, "args": []}),
        )
    }

    fn screenshot(&self, name: &str) {
        let picture = self.command("GET", &format!("{}/screenshot", self.session), &Value::Null);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("screenshots");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), STANDARD.decode(picture.as_str().unwrap()).unwrap()).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.command("DELETE", &self.session, &Value::Null);
        }
        drop(self.driver.kill());
        drop(self.driver.wait());
    }
}

/// The number that an element of the page shows.
fn shown(browser: &Browser, selector: &str) -> u64 {
    let text = browser.run(&format!("return document.querySelector({selector:?})?.textContent"));
    let text = text.as_str().unwrap_or_else(|| panic!("the page has no {selector}"));
    text.trim().parse().unwrap_or_else(|_| panic!("{selector} shows {text:?}"))
}

#[test]
fn a_browser_sees_its_views_count_up_and_its_worker_vary() {
    let redis = RedisServer::start();
    let fleet = Plan::on(&redis).workers(4).start();
    let browser = Browser::open(1280, 900);
    let workers: BTreeSet<_> = fleet.workers().into_iter().map(u64::from).collect();
    let mut served = BTreeSet::new();
    for views in 1..=16 {
        browser.go(&format!("http://{}/", fleet.listen));
        assert_eq!(shown(&browser, ".figures dd"), views);
        let pid = shown(&browser, ".served strong");
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
    let redis = RedisServer::start();
    let fleet = Plan::on(&redis).start();
    let browser = Browser::open(500, 900);
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
    let redis = RedisServer::start();
    let fleet = Plan::on(&redis).start();
    let browser = Browser::open(1000, 800);
    let text = |selector: &str| {
        browser
            .run(&format!("return document.querySelector({selector:?})?.textContent ?? ''"))
            .as_str()
            .unwrap()
            .to_owned()
    };
    browser.go(&format!("http://{}/login", fleet.listen));
    browser.screenshot("login.png");
    browser.run("document.querySelector('#name').value = 'Ann'");
    submit(&browser, "Log in", "/me");
    assert!(text(".lead").contains("Ann"), "{}", text(".lead"));
    browser.screenshot("me.png");
    let mut elsewhere = Visitor::default();
    let login = Request::post("/login").header("User-Agent", "Another browser, on a boat");
    assert_eq!(
        elsewhere.ask(fleet.listen, login.body("application/json", b"{\"name\":\"Ann\"}")).status,
        200
    );
    browser.go(&format!("http://{}/me/sessions", fleet.listen));
    browser.screenshot("sessions.png");
    assert_eq!(browser.run("return document.querySelectorAll('.sessions li').length"), 2);
    browser.run("document.querySelector('.sessions form button').click()");
    wait::until("the other one is ended", wait::LONG, || {
        browser.run("return document.querySelectorAll('.sessions li').length") == 1
    });
    assert_eq!(elsewhere.ask(fleet.listen, Request::get("/me")).status, 401);
    browser.go(&format!("http://{}/me", fleet.listen));
    submit(&browser, "Log out", "/");
    browser.go(&format!("http://{}/me", fleet.listen));
    assert_eq!(browser.run("return location.pathname"), "/login", "nobody is logged in");
}

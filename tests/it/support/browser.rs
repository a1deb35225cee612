//! A real browser, driven over `WebDriver` (W3C), of which only few commands are needed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::client::{Connection, Request};
use crate::support::wait;

/// How often a driver is started before the test fails.
const STARTS: usize = 10;

/// A headless Chromium with a profile of its own.
pub(crate) struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    _profile: TempDir,
}

impl Browser {
    pub(crate) fn open(width: u32, height: u32) -> Self {
        let profile = TempDir::with_prefix("browser").unwrap();
        let (driver, address) = start_driver(profile.path());
        let mut browser = Self { driver, address, session: String::new(), _profile: profile };
        let profile = format!("--user-data-dir={}", browser._profile.path().display());
        let size = format!("--window-size={width},{height}");
        // Without a sandbox because tests run as root in containers; the only page it sees is ours.
        let args =
            ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", &profile, &size];
        let options = json!({"args": args});
        let chrome = json!({"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}});
        let capabilities = json!({"capabilities": {"alwaysMatch": chrome}});
        let opened = browser.command("POST", "/session", &capabilities);
        browser.session = format!("/session/{}", opened["sessionId"].as_str().unwrap());
        browser
    }

    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut connection = Connection::open(self.address).unwrap();
        connection.set_timeout(std::time::Duration::from_secs(60));
        let mut request = Request::new(method, path);
        if method == "POST" {
            request = request.body("application/json", body.to_string().as_bytes());
        }
        let mut response = connection.request(&request).unwrap().json();
        assert!(response["value"]["error"].is_null(), "{path}: {response}");
        response["value"].take()
    }

    pub(crate) fn go(&self, url: &str) {
        self.command("POST", &format!("{}/url", self.session), &json!({"url": url}));
    }

    pub(crate) fn run(&self, script: &str) -> Value {
        self.command(
            "POST",
            &format!("{}/execute/sync", self.session),
            &json!({"script": script, "args": []}),
        )
    }

    pub(crate) fn screenshot(&self, name: &str) {
        let picture = self.command("GET", &format!("{}/screenshot", self.session), &Value::Null);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("screenshots");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), STANDARD.decode(picture.as_str().unwrap()).unwrap()).unwrap();
    }

    /// Shows the page to someone who likes it light or dark, and still.
    pub(crate) fn likes(&self, scheme: &str) {
        let still = json!({"name": "prefers-reduced-motion", "value": "reduce"});
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}, still]);
        let command = json!({"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}});
        self.command("POST", &format!("{}/goog/cdp/execute", self.session), &command);
    }

    /// As wide as a telephone: a window cannot be so narrow.
    pub(crate) fn narrow(&self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 2, "mobile": true});
        let command = json!({"cmd": "Emulation.setDeviceMetricsOverride", "params": size});
        self.command("POST", &format!("{}/goog/cdp/execute", self.session), &command);
    }

    /// As if another tab came in front of the page, or went away: a browser without a window has no such thing.
    pub(crate) fn hidden(&self, hidden: bool) {
        self.run(&format!(
            "Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }});
             document.dispatchEvent(new Event('visibilitychange'))"
        ));
    }

    /// The text of the first element that matches, trimmed; empty if there is none.
    pub(crate) fn text(&self, selector: &str) -> String {
        let text = self.run(&format!("return document.querySelector({selector:?})?.textContent ?? ''"));
        text.as_str().unwrap_or_default().trim().to_owned()
    }

    /// What the browser has written into its console since the last look.
    pub(crate) fn log(&self) -> Vec<String> {
        let lines = self.command("POST", &format!("{}/se/log", self.session), &json!({"type": "browser"}));
        let lines = lines.as_array().cloned().unwrap_or_default();
        lines.iter().filter_map(|line| line["message"].as_str().map(str::to_owned)).collect()
    }

    /// Waits until a script returns true.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, script: &str) {
        wait::until(what, wait::LONG, || self.run(&format!("return {script}")) == true);
    }
}

/// Starts chromedriver, which takes a free port of IPv6 and wants the same one of IPv4: it ends where that one is
/// taken, as happens among thousands of connections, so it is started anew.
fn start_driver(home: &Path) -> (Child, SocketAddr) {
    let mut said = Vec::new();
    for _ in 0..STARTS {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").env("HOME", home).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = command.spawn().expect("chromedriver is installed (`make test` does it)");
        for line in BufReader::new(driver.stdout.take().unwrap()).lines().map_while(Result::ok) {
            let port = line.split("successfully on port ").nth(1);
            if let Some(port) = port.and_then(|port| port.trim_end_matches('.').parse::<u16>().ok()) {
                return (driver, SocketAddr::from(([127, 0, 0, 1], port)));
            }
            said.push(line);
        }
        driver.wait().unwrap();
    }
    panic!("chromedriver says no port in {STARTS} starts: {said:#?}");
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

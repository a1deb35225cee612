//! Encryption to Redis: both sides show who they are, and a mistake says which setting mends it.

use crate::support::fleet::TestFleetBuilder;
use crate::support::redis_tcp::{TestRedisTcp, words};
use crate::support::tls::{TestCa, word};

/// A server that wants to see a certificate of its authority; its own is for 127.0.0.1.
fn server(authority: &TestCa) -> TestRedisTcp {
    let (cert, key) = authority.issue("server", "IP:127.0.0.1");
    let (cert, key, ca) = (word(&cert), word(&key), word(&authority.ca()));
    let (own_cert, own_key) = authority.issue("cli", "DNS:cli");
    let args = |port: u16, _: &std::path::Path| {
        words(&[
            "--port",
            "0",
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &cert,
            "--tls-key-file",
            &key,
            "--tls-ca-cert-file",
            &ca,
            "--tls-auth-clients",
            "yes",
        ])
    };
    let (own_cert, own_key) = (word(&own_cert), word(&own_key));
    TestRedisTcp::start_locked(args, &["--tls", "--cacert", &ca, "--cert", &own_cert, "--key", &own_key])
}

/// A plan with everything that the server wants.
fn plan(server: &TestRedisTcp, authority: &TestCa) -> TestFleetBuilder {
    let (cert, key) = authority.issue("worker", "DNS:worker");
    TestFleetBuilder::new()
        .set("REGATTA_REDIS__URL", &format!("rediss://127.0.0.1:{}", server.port))
        .set("REGATTA_REDIS__TLS_CA", &word(&authority.ca()))
        .set("REGATTA_REDIS__TLS_CERT", &word(&cert))
        .set("REGATTA_REDIS__TLS_KEY", &word(&key))
}

#[test]
fn a_fleet_serves_over_an_encrypted_connection() {
    let authority = TestCa::new();
    let server = server(&authority);
    let fleet = plan(&server, &authority).start();
    assert_eq!(fleet.get("/").status, 200);
    assert_eq!(server.cli(&["GET", "regatta:c:@views"]), "1");
}

#[test]
fn mistakes_say_which_setting_mends_them() {
    let (authority, other) = (TestCa::new(), TestCa::new());
    let server = server(&authority);
    let right = plan(&server, &authority);
    let localhost = format!("rediss://localhost:{}", server.port);
    let alone = TestRedisTcp::plain();
    let plaintext = format!("rediss://127.0.0.1:{}", alone.port);
    let cases = [
        (right.clone().unset("REGATTA_REDIS__TLS_CA"), "redis.tls_ca"),
        (
            right.clone().set("REGATTA_REDIS__TLS_CA", &word(&other.ca())),
            "redis.tls_ca must name the authority",
        ),
        (right.clone().unset("REGATTA_REDIS__TLS_CERT").unset("REGATTA_REDIS__TLS_KEY"), "redis.tls_cert"),
        (right.clone().set("REGATTA_REDIS__URL", &localhost), "another name than the host in redis.url"),
        (right.clone().set("REGATTA_REDIS__URL", &plaintext), "nothing speaks TLS there"),
        (
            right.clone().set("REGATTA_REDIS__TLS_CA", "/nonexistent/ca.pem"),
            "redis.tls_ca /nonexistent/ca.pem",
        ),
    ];
    for (plan, reason) in cases {
        let (code, said) = plan.args(&["check"]).run();
        assert!(code == 69 && said.contains(reason), "wanted {reason:?}: {code} {said}");
    }
    let (code, said) = right.args(&["check"]).run();
    assert_eq!(code, 0, "{said}");
}

//! A certificate authority of a test's own, with certificates for a server and a client.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// Files of one authority.
#[derive(Debug)]
pub(crate) struct TestCa {
    folder: TempDir,
}

impl TestCa {
    pub(crate) fn new() -> Self {
        let authority = Self { folder: TempDir::with_prefix("tls").unwrap() };
        let (key, cert) = (authority.file("ca.key"), authority.file("ca.crt"));
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test authority",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-keyout",
            &key,
            "-out",
            &cert,
        ]);
        authority
    }

    fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The authority's own certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.path("ca.crt")
    }

    /// A certificate for `names` (as in `DNS:localhost,IP:127.0.0.1`) and its key.
    pub(crate) fn issue(&self, name: &str, names: &str) -> (PathBuf, PathBuf) {
        let part = |end: &str| self.file(&format!("{name}.{end}"));
        let subject = format!("/CN={name}");
        openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            &subject,
            "-keyout",
            &part("key"),
            "-out",
            &part("csr"),
        ]);
        std::fs::write(part("ext"), format!("subjectAltName={names}\n")).unwrap();
        openssl(&[
            "x509",
            "-req",
            "-in",
            &part("csr"),
            "-CA",
            &self.file("ca.crt"),
            "-CAkey",
            &self.file("ca.key"),
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &part("ext"),
            "-out",
            &part("crt"),
        ]);
        (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")))
    }
}

fn openssl(args: &[&str]) {
    let output = Command::new("openssl").args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
}

/// A path as a word of a command line.
pub(crate) fn word(path: &Path) -> String {
    path.display().to_string()
}

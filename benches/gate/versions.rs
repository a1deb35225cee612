//! What instruction counts depend on beside the program itself.

use std::collections::BTreeMap;
use std::process::Command;

use crate::Outcome;

/// What is installed here.
pub(crate) fn here() -> Outcome<BTreeMap<String, String>> {
    let mut versions = BTreeMap::new();
    let mut note = |name: &str, version: String| versions.insert(name.to_owned(), version);
    note("rustc", first_line("rustc", &["--version"])?);
    // It compiles the allocator.
    note("cc", first_line("cc", &["--version"])?);
    note("valgrind", first_line("valgrind", &["--version"])?);
    let redis = first_line("redis-server", &["--version"])?;
    note("redis", redis.split(" sha=").next().unwrap_or_default().to_owned());
    note("libc", first_line("getconf", &["GNU_LIBC_VERSION"])?);
    // The C library and the ciphers have other code for other processors.
    note("processor", processor());
    Ok(versions)
}

fn first_line(program: &str, arguments: &[&str]) -> Outcome<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program} cannot be run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

fn processor() -> String {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = flags.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    // Those that valgrind hands on to the program.
    let known = ["avx", "avx2", "bmi1", "bmi2", "fma", "aes", "pclmulqdq", "rdrand", "f16c", "movbe"];
    let has = known.into_iter().filter(|name| flags.split_whitespace().any(|flag| flag == *name));
    std::iter::once(std::env::consts::ARCH).chain(has).collect::<Vec<_>>().join(" ")
}

#![no_main]
//! See the function of this name in `src/lib.rs`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| regatta_fuzz::proxy_protocol(data));

//! Text in a file of an operator's, whatever editor wrote it.

/// The text that these bytes are: UTF-8, with or without a byte order mark.
///
/// # Errors
/// Why they are no text, as the end of a sentence about their file; nothing of them is in it.
pub fn decode_utf8(bytes: Vec<u8>) -> Result<String, &'static str> {
    let bytes = match bytes.strip_prefix(b"\xef\xbb\xbf") {
        Some(rest) => rest.to_vec(),
        None => bytes,
    };
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err("it is UTF-16; save it as UTF-8");
    }
    if bytes.contains(&0) {
        return Err("it has a zero byte, as UTF-16 or a binary file has; save it as UTF-8");
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_no_part_of_a_text_and_another_encoding_is_named() {
        assert_eq!(decode_utf8(b"\xef\xbb\xbflisten = 1".to_vec()).unwrap(), "listen = 1");
        assert_eq!(decode_utf8("a\r\n\u{e9}".into()).unwrap(), "a\r\n\u{e9}");
        for (wrong, reason) in [
            (b"\xff\xfea\0".as_slice(), "UTF-16"),
            (b"\xfe\xff\0a", "UTF-16"),
            (b"a\0b\0", "zero byte"),
            (b"a\xff", "not UTF-8"),
        ] {
            assert!(decode_utf8(wrong.to_vec()).unwrap_err().contains(reason), "{wrong:?}");
        }
    }
}

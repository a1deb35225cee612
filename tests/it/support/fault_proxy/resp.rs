//! Where a value of RESP ends, and the first words of a command.

/// The bytes are no RESP.
#[derive(Debug)]
pub(super) struct NotResp;

/// Length of the first value, `None` while a part of it is missing.
pub(super) fn whole(bytes: &[u8]) -> Result<Option<usize>, NotResp> {
    let (mut at, mut missing) = (0, 1usize);
    while missing > 0 {
        let Some(line) = line(&bytes[at..])? else { return Ok(None) };
        let count = || std::str::from_utf8(&line[1..]).ok()?.parse::<i64>().ok();
        let kind = line[0];
        at += line.len() + 2;
        missing -= 1;
        match kind {
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => (),
            b'$' | b'!' | b'=' => {
                let length = count().ok_or(NotResp)?;
                at += usize::try_from(length).map_or(0, |length| length + 2);
            }
            b'*' | b'~' | b'>' => missing += usize::try_from(count().ok_or(NotResp)?).unwrap_or(0),
            b'%' => missing += 2 * usize::try_from(count().ok_or(NotResp)?).unwrap_or(0),
            b'|' => missing += 1 + 2 * usize::try_from(count().ok_or(NotResp)?).unwrap_or(0),
            _ => return Err(NotResp),
        }
        if at > bytes.len() {
            return Ok(None);
        }
    }
    Ok(Some(at))
}

/// Up to the line's end, without it; `None` while that is missing.
fn line(bytes: &[u8]) -> Result<Option<&[u8]>, NotResp> {
    match bytes.first() {
        None => return Ok(None),
        Some(kind) if b"+-:_#,($!=*~>%|".contains(kind) => (),
        Some(_) => return Err(NotResp),
    }
    Ok(bytes.windows(2).position(|pair| pair == b"\r\n").map(|end| &bytes[..end]))
}

/// At most so many first words of a whole command.
pub(super) fn words(frame: &[u8], most: usize) -> Vec<&[u8]> {
    let mut words = Vec::new();
    let mut at = match line(frame) {
        Ok(Some(head)) if head[0] == b'*' => head.len() + 2,
        _ => return words,
    };
    while words.len() < most && at < frame.len() {
        let Ok(Some(head)) = line(&frame[at..]) else { break };
        let length: usize = String::from_utf8_lossy(&head[1..]).parse().unwrap_or(0);
        at += head.len() + 2;
        words.push(&frame[at..at + length]);
        at += length + 2;
    }
    words
}

#[test]
fn values_end_where_the_protocol_ends_them() {
    for whole_one in
        ["+OK\r\n", "$-1\r\n", "$0\r\n\r\n", "*0\r\n", "*2\r\n$1\r\na\r\n*1\r\n:1\r\n", "%1\r\n+a\r\n_\r\n"]
    {
        let length = whole_one.len();
        assert_eq!(whole(format!("{whole_one}+rest").as_bytes()).unwrap(), Some(length), "{whole_one:?}");
        for cut in 0..length {
            assert_eq!(whole(&whole_one.as_bytes()[..cut]).unwrap(), None, "{whole_one:?} cut at {cut}");
        }
    }
    assert!(whole(b"\x16\x03\x01").is_err(), "a TLS greeting");
    assert_eq!(words(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", 9), [b"GET".as_slice(), b"k"]);
}

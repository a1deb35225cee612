//! The result of a command, shown once on the page that follows.

/// Longest text, characters: a cookie carries it.
const TEXT_MAX: usize = 600;

/// A result in one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FlashMessage {
    /// Whether the command succeeded or still runs.
    pub(super) ok: bool,
    pub(super) text: String,
}

impl FlashMessage {
    pub(super) fn done(text: impl Into<String>) -> Self {
        Self { ok: true, text: text.into() }
    }

    pub(super) fn failed(text: impl Into<String>) -> Self {
        Self { ok: false, text: text.into() }
    }

    /// The cookie's form.
    pub(super) fn encode(&self) -> String {
        let mark = if self.ok { '+' } else { '-' };
        std::iter::once(mark).chain(self.text.chars().take(TEXT_MAX)).collect()
    }

    /// The reverse of [`Self::encode`]; `None` for anything else.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let failed = text.strip_prefix('-').map(Self::failed);
        text.strip_prefix('+').map(Self::done).or(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_decoded_as_it_was_encoded_and_a_long_one_is_cut() {
        for flash in [FlashMessage::done("2 workers serve"), FlashMessage::failed("")] {
            assert_eq!(FlashMessage::decode(flash.encode().as_bytes()), Some(flash));
        }
        assert_eq!(FlashMessage::done("é".repeat(5000)).encode().chars().count(), TEXT_MAX + 1);
        assert!(FlashMessage::decode(b"").is_none() && FlashMessage::decode(b"\xff").is_none());
    }
}

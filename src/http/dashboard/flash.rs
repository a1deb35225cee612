//! What an operator is told on the page that follows a button.

/// Longest sentence, characters: a cookie carries it.
const TEXT_MAX: usize = 600;

/// How it went, in a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FlashMessage {
    /// Whether it was done, or is on its way.
    pub(super) ok: bool,
    /// What to tell.
    pub(super) text: String,
}

impl FlashMessage {
    pub(super) fn done(text: impl Into<String>) -> Self {
        Self { ok: true, text: text.into() }
    }

    pub(super) fn failed(text: impl Into<String>) -> Self {
        Self { ok: false, text: text.into() }
    }

    /// As a cookie carries it.
    pub(super) fn encode(&self) -> String {
        let mark = if self.ok { '+' } else { '-' };
        std::iter::once(mark).chain(self.text.chars().take(TEXT_MAX)).collect()
    }

    /// The reverse; none for anything else.
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

//! Mistakes of an application that a call notices which cannot fail: the worker then does not start.

use std::sync::{Mutex, PoisonError};

/// The first mistake that was noticed while the application was built.
#[derive(Debug, Default)]
pub(crate) struct BuildMistakes(Mutex<Progress>);

#[derive(Debug, Default)]
struct Progress {
    first: Option<String>,
    is_built: bool,
}

impl BuildMistakes {
    /// Notes a mistake; once the application is built it can only be logged.
    pub(crate) fn note(&self, mistake: String) {
        let mut progress = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match progress.is_built {
            true => tracing::error!("{mistake}"),
            false => _ = progress.first.get_or_insert(mistake),
        }
    }

    /// The application is built: the first mistake, if there was one.
    pub(crate) fn end(&self) -> Option<String> {
        let mut progress = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        progress.is_built = true;
        progress.first.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_mistake_of_the_build_is_kept_and_no_later_one() {
        let mistakes = BuildMistakes::default();
        mistakes.note("one".to_owned());
        mistakes.note("two".to_owned());
        assert_eq!(mistakes.end().as_deref(), Some("one"));
        mistakes.note("three".to_owned());
        assert_eq!(mistakes.end(), None);
    }
}

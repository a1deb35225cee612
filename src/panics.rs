//! What a panic that was caught says about itself.

use std::any::Any;

/// The message of a panic's payload; "no message" where the payload is no text.
pub fn panic_message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::panic::{catch_unwind, panic_any, resume_unwind};

    use super::*;

    fn message(act: fn()) -> String {
        panic_message(&*catch_unwind(act).unwrap_err()).to_owned()
    }

    #[test]
    fn every_kind_of_payload_has_a_message() {
        assert_eq!(message(|| resume_unwind(Box::new("literal"))), "literal");
        assert_eq!(message(|| resume_unwind(Box::new(String::from("formatted 1")))), "formatted 1");
        assert_eq!(message(|| panic_any(7)), "no message");
    }
}

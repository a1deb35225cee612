//! Keys as `top` understands them.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// What a key means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TopKey {
    /// Select the slot above.
    Up,
    /// Select the slot below.
    Down,
    /// Sort by the column to the left.
    Left,
    /// Sort by the column to the right.
    Right,
    /// Sort by a column, from 0.
    Column(usize),
    /// Turn the order round.
    Reverse,
    /// Reload the fleet.
    Reload,
    /// Replace the worker of the selected slot.
    Restart,
    /// Yes, do it.
    Yes,
    /// Show the keys.
    Help,
    /// Leave.
    Quit,
    /// Leave, whatever is on the screen.
    Interrupt,
    /// Nothing; but a question is answered with no.
    Other,
}

/// The keys, as the help lists them.
pub(super) const HELP: &[(&str, &str)] = &[
    ("↑ ↓  j k", "select a slot"),
    ("← →  s", "sort by another column"),
    ("1 … 9", "sort by that column; again: the other way round"),
    ("r", "the other way round"),
    ("R", "reload: every slot gets a new worker (asks)"),
    ("x", "replace the worker of the selected slot (asks)"),
    ("q  Esc  Ctrl-C", "leave"),
];

/// The meaning of a key; none for a key that is let go.
pub(super) fn interpret(event: KeyEvent) -> Option<TopKey> {
    if event.kind == KeyEventKind::Release {
        return None;
    }
    let is_control = event.modifiers.contains(KeyModifiers::CONTROL);
    Some(match event.code {
        KeyCode::Char('c' | 'd') if is_control => TopKey::Interrupt,
        _ if is_control => TopKey::Other,
        KeyCode::Up | KeyCode::Char('k') => TopKey::Up,
        KeyCode::Down | KeyCode::Char('j') => TopKey::Down,
        KeyCode::Left => TopKey::Left,
        KeyCode::Right | KeyCode::Char('s') => TopKey::Right,
        KeyCode::Char(digit @ '1'..='9') => TopKey::Column(digit as usize - '1' as usize),
        KeyCode::Char('r') => TopKey::Reverse,
        KeyCode::Char('R') => TopKey::Reload,
        KeyCode::Char('x') => TopKey::Restart,
        KeyCode::Char('y' | 'Y') => TopKey::Yes,
        KeyCode::Char('?' | 'h') => TopKey::Help,
        KeyCode::Char('q') | KeyCode::Esc => TopKey::Quit,
        _ => TopKey::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_mean_what_is_in_the_help() {
        let plain = |code| interpret(KeyEvent::new(code, KeyModifiers::NONE));
        assert_eq!(plain(KeyCode::Char('1')), Some(TopKey::Column(0)));
        assert_eq!(plain(KeyCode::Char('9')), Some(TopKey::Column(8)));
        assert_eq!(plain(KeyCode::Esc), Some(TopKey::Quit));
        assert_eq!(plain(KeyCode::Char('r')), Some(TopKey::Reverse));
        assert_eq!(plain(KeyCode::Char('R')), Some(TopKey::Reload));
        let control = |letter| interpret(KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL));
        assert_eq!(control('c'), Some(TopKey::Interrupt));
        assert_eq!(control('r'), Some(TopKey::Other), "no order by a slip of the finger");
        let released = KeyEvent::new_with_kind(KeyCode::Char('q'), KeyModifiers::NONE, KeyEventKind::Release);
        assert_eq!(interpret(released), None);
    }
}

//! Keys as `top` understands them.

use ratatui::crossterm::event::KeyCode;
use ratatui::crossterm::event::KeyEvent;
use ratatui::crossterm::event::KeyEventKind;
use ratatui::crossterm::event::KeyModifiers;

/// What a key means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
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
pub(super) fn meaning(event: KeyEvent) -> Option<Key> {
    if event.kind == KeyEventKind::Release {
        return None;
    }
    let is_control = event.modifiers.contains(KeyModifiers::CONTROL);
    Some(match event.code {
        KeyCode::Char('c' | 'd') if is_control => Key::Interrupt,
        _ if is_control => Key::Other,
        KeyCode::Up | KeyCode::Char('k') => Key::Up,
        KeyCode::Down | KeyCode::Char('j') => Key::Down,
        KeyCode::Left => Key::Left,
        KeyCode::Right | KeyCode::Char('s') => Key::Right,
        KeyCode::Char(digit @ '1'..='9') => Key::Column(digit as usize - '1' as usize),
        KeyCode::Char('r') => Key::Reverse,
        KeyCode::Char('R') => Key::Reload,
        KeyCode::Char('x') => Key::Restart,
        KeyCode::Char('y' | 'Y') => Key::Yes,
        KeyCode::Char('?' | 'h') => Key::Help,
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        _ => Key::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_mean_what_the_help_says() {
        let plain = |code| meaning(KeyEvent::new(code, KeyModifiers::NONE));
        assert_eq!(plain(KeyCode::Char('1')), Some(Key::Column(0)));
        assert_eq!(plain(KeyCode::Char('9')), Some(Key::Column(8)));
        assert_eq!(plain(KeyCode::Esc), Some(Key::Quit));
        assert_eq!(plain(KeyCode::Char('r')), Some(Key::Reverse));
        assert_eq!(plain(KeyCode::Char('R')), Some(Key::Reload));
        let control = |letter| meaning(KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL));
        assert_eq!(control('c'), Some(Key::Interrupt));
        assert_eq!(control('r'), Some(Key::Other), "no order by a slip of the finger");
        let released = KeyEvent::new_with_kind(KeyCode::Char('q'), KeyModifiers::NONE, KeyEventKind::Release);
        assert_eq!(meaning(released), None);
    }
}

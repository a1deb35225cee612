//! The model on a screen: headline, figures, graphs, table, and a line of keys.

use std::time::Duration;

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Alignment, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, RenderDirection, Sparkline, Widget};

use crate::cli::status::table;
use crate::cli::status::table::{COLUMNS, GAP, Severity};
use crate::cli::top::keys;
use crate::cli::top::model::{FleetConnection, InputMode, TopModel};
use crate::cli::{status, units};

/// Lines of a graph, its title included.
const GRAPH: u16 = 4;

/// Fewest lines on which graphs leave room for what matters more.
const TALL: u16 = 18;

const HINT: &str = "q leave · ↑↓ select · ←→ sort · r reverse · R reload · x restart · ? help";

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, model: &TopModel, now: Duration) {
    let area = frame.area();
    page(area, frame.buffer_mut(), model, now, area.height >= TALL);
    if model.mode == InputMode::Help {
        help(area, frame.buffer_mut());
    }
}

/// Everything but what lies over it.
fn page(area: Rect, buffer: &mut Buffer, model: &TopModel, now: Duration, with_graphs: bool) {
    let mut head = vec![headline(model, now)];
    head.extend(status::summary_lines(&model.status).into_iter().map(|line| Line::raw(format!("  {line}"))));
    if let Some((severity, rollout)) = status::rollout_line(&model.status) {
        head.push(Line::styled(format!("  {rollout}"), style(severity)));
    }
    let height = u16::try_from(head.len()).unwrap_or(u16::MAX);
    let (top, rest) = split(area, height);
    Paragraph::new(head).render(top, buffer);
    let (body, foot) = split(rest, rest.height.saturating_sub(1));
    let (_, body) = split(body, 1);
    let (graphs, body) = split(body, if with_graphs { GRAPH + 1 } else { 0 });
    if with_graphs {
        draw_graphs(graphs, buffer, model);
    }
    table(body, buffer, model);
    Paragraph::new(last_line(model, now)).render(foot, buffer);
}

/// The first lines of an area, and the others.
fn split(area: Rect, height: u16) -> (Rect, Rect) {
    let height = height.min(area.height);
    let rest = Rect { y: area.y + height, height: area.height - height, ..area };
    (Rect { height, ..area }, rest)
}

fn style(severity: Severity) -> Style {
    match severity {
        Severity::Good => Style::new().fg(Color::Green),
        Severity::Transitional => Style::new().fg(Color::Yellow),
        Severity::Bad => Style::new().fg(Color::Red),
        Severity::Muted => Style::new().add_modifier(Modifier::DIM),
    }
}

fn headline(model: &TopModel, now: Duration) -> Line<'static> {
    let (name, rest) = status::headline(&model.status);
    match (&model.connection, model.silent_for(now)) {
        (FleetConnection::Lost(why), _) => {
            Line::styled(format!("● gone: {}", units::sanitize(why)), style(Severity::Bad))
        }
        (FleetConnection::Up, Some(silent)) => {
            let text = format!("● no answer for {} · last: {name} {rest}", units::age(silent.as_secs()));
            Line::styled(text, style(Severity::Bad))
        }
        (FleetConnection::Up, None) => {
            let severity = style(status::fleet_severity(&model.status)).add_modifier(Modifier::BOLD);
            Line::from(vec![Span::styled(format!("● {name}"), severity), Span::raw(format!(" {rest}"))])
        }
    }
}

fn draw_graphs(area: Rect, buffer: &mut Buffer, model: &TopModel) {
    let rates = model.status.rates;
    let rate = rates.requests_per_s.map_or(units::NONE.to_owned(), units::rate);
    let p99 = rates.latency_p99_us.map_or(units::NONE.to_owned(), units::micros);
    let most = model.p99.iter().max().copied().unwrap_or(0);
    let peak = model.rates.iter().max().copied().unwrap_or(0);
    let half = area.width.saturating_sub(2) / 2;
    let left = Rect { width: half, height: GRAPH.min(area.height), ..area };
    let right = Rect { x: area.x + half + 2, ..left };
    let graph = |area: Rect, buffer: &mut Buffer, title: String, points: Vec<u64>, colour: Color| {
        let (top, below) = split(area, 1);
        Paragraph::new(Line::styled(title, style(Severity::Muted))).render(top, buffer);
        // The newest stands at the right edge, where one looks.
        let bars = Sparkline::default().data(points).direction(RenderDirection::RightToLeft);
        bars.style(Style::new().fg(colour)).render(below, buffer);
    };
    let points = |history: &std::collections::VecDeque<u64>| {
        history.iter().copied().take(usize::from(half)).collect::<Vec<_>>()
    };
    let title = format!("REQ/S {rate}, at most {}", units::abbreviated(peak));
    graph(left, buffer, title, points(&model.rates), Color::Cyan);
    let title = format!("P99 {p99}, at most {}", units::micros(most));
    graph(right, buffer, title, points(&model.p99), Color::Magenta);
}

fn table(area: Rect, buffer: &mut Buffer, model: &TopModel) {
    let lines: Vec<table::TableRow> = model.slots().iter().flat_map(table::rows).collect();
    let widths = table::widths(&lines, Some(usize::from(area.width)));
    let gap = Span::raw(" ".repeat(GAP));
    let mut title = Vec::new();
    for (index, width) in &widths {
        let base = style(Severity::Muted);
        let sorted = base.remove_modifier(Modifier::DIM).add_modifier(Modifier::BOLD | Modifier::UNDERLINED);
        let title_style = if *index == model.sort { sorted } else { base };
        title.push(Span::styled(table::pad(COLUMNS[*index].title, *index, *width), title_style));
        title.push(gap.clone());
    }
    let (top, body) = split(area, 1);
    Paragraph::new(Line::from(title)).render(top, buffer);
    let rows: Vec<Line<'_>> = lines
        .iter()
        .map(|line| {
            let mut spans = Vec::new();
            for (index, width) in &widths {
                let text = table::pad(&line.cells[*index], *index, *width);
                let is_state = COLUMNS[*index].title == "STATE";
                spans.push(if is_state { Span::styled(text, style(line.severity)) } else { Span::raw(text) });
                spans.push(gap.clone());
            }
            let row = Line::from(spans);
            if line.slot == model.selected {
                row.style(Style::new().add_modifier(Modifier::REVERSED))
            } else {
                row
            }
        })
        .collect();
    let at = lines.iter().position(|line| line.slot == model.selected).unwrap_or(0);
    let first = first_row(at, rows.len(), usize::from(body.height));
    Paragraph::new(rows.into_iter().skip(first).collect::<Vec<_>>()).render(body, buffer);
}

/// The row the table begins with, so that the one at `at` is seen.
fn first_row(at: usize, rows: usize, height: usize) -> usize {
    let middle = at.saturating_sub(height / 2);
    middle.min(rows.saturating_sub(height))
}

fn last_line(model: &TopModel, now: Duration) -> Line<'static> {
    if let InputMode::Confirm(order) = model.mode {
        let question = format!("{} y / n", order.question());
        return Line::styled(question, style(Severity::Transitional).add_modifier(Modifier::BOLD));
    }
    match model.note(now) {
        Some(shown) => Line::styled(units::sanitize(&shown.text), style(shown.severity)),
        None => Line::styled(HINT, style(Severity::Muted)),
    }
}

fn help(area: Rect, buffer: &mut Buffer) {
    let lines: Vec<Line<'_>> =
        keys::HELP.iter().map(|(key, what)| Line::raw(format!(" {key:<16} {what}"))).collect();
    let height = u16::try_from(lines.len() + 2).unwrap_or(u16::MAX).min(area.height);
    let width = 68.min(area.width);
    let (x, y) = (area.x + (area.width - width) / 2, area.y + (area.height - height) / 2);
    let place = Rect { x, y, width, height };
    Clear.render(place, buffer);
    let block = Block::bordered().title(" keys ").title_alignment(Alignment::Center);
    Paragraph::new(lines).block(block).render(place, buffer);
}

/// One frame as plain text, without graphs, which one look does not fill: so many columns wide and as high as it needs.
pub(super) fn render_text(model: &TopModel, columns: u16, now: Duration) -> String {
    let rows: usize = model.slots().iter().map(|slot| 1 + slot.others.len()).sum();
    let height = u16::try_from(rows + status::summary_lines(&model.status).len() + 5).unwrap_or(u16::MAX);
    let area = Rect { x: 0, y: 0, width: columns, height };
    let mut buffer = Buffer::empty(area);
    page(area, &mut buffer, model, now, false);
    let line = |y: u16| {
        let cells = (0..area.width).filter_map(|x| buffer.cell((x, y)));
        // The cell behind a wide letter is no letter of its own.
        let (mut text, mut hidden) = (String::new(), 0);
        for cell in cells {
            if hidden == 0 {
                text.push_str(cell.symbol());
                hidden = units::width(cell.symbol()).max(1);
            }
            hidden -= 1;
        }
        text.trim_end().to_owned()
    };
    // The last line is that of the keys, which have no effect here.
    let lines: Vec<String> = (0..area.height.saturating_sub(1)).map(line).collect();
    lines.join("\n").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::cli::test_fixtures;
    use crate::cli::top::keys::TopKey;

    const SECOND: Duration = Duration::from_secs(1);

    fn screen(model: &TopModel, width: u16, height: u16, now: Duration) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model, now)).unwrap();
        let buffer = terminal.backend().buffer();
        let row = |y: u16| (0..width).map(|x| buffer.cell((x, y)).unwrap().symbol()).collect::<String>();
        (0..height).map(|y| row(y).trim_end().to_owned()).collect()
    }

    #[test]
    fn a_screen_shows_headline_graphs_table_and_keys() {
        let mut model = TopModel::new(test_fixtures::instance_status(), SECOND);
        let mut next = test_fixtures::instance_status();
        next.totals.requests += 300;
        model.update(next, SECOND * 2);
        let screen = screen(&model, 120, 24, SECOND * 2);
        let page = screen.join("\n");
        assert!(screen[0].starts_with("● serving 2 of 3 workers"), "{page}");
        assert!(page.contains("REQ/S 300, at most 300") && page.contains("P99 1.8ms"), "{page}");
        assert!(page.contains('█'), "a bar of a graph\n{page}");
        let title = screen.iter().position(|line| line.starts_with("SLOT")).unwrap();
        assert!(screen[title + 1].contains("4010") && screen[title + 2].contains("draining"), "{page}");
        assert_eq!(screen[23], HINT);
    }

    #[test]
    fn any_size_of_a_terminal_is_borne() {
        let mut model = TopModel::new(test_fixtures::instance_status(), SECOND);
        for mode in [InputMode::Table, InputMode::Help] {
            model.mode = mode;
            for (width, height) in [(1, 1), (2, 40), (200, 2), (20, 8), (80, 24), (300, 100)] {
                assert_eq!(screen(&model, width, height, SECOND).len(), usize::from(height));
            }
        }
    }

    #[test]
    fn a_question_a_silence_and_a_loss_are_seen() {
        let mut model = TopModel::new(test_fixtures::instance_status(), SECOND);
        model.handle_key(TopKey::Restart, SECOND);
        assert_eq!(screen(&model, 80, 24, SECOND)[23], "replace the worker of slot 0? y / n");
        assert!(screen(&model, 80, 24, SECOND * 9)[0].starts_with("● no answer for 8s"));
        model.set_disconnected("nobody there".into());
        assert_eq!(screen(&model, 80, 24, SECOND)[0], "● gone: nobody there");
        model.mode = InputMode::Help;
        assert!(screen(&model, 80, 24, SECOND).join("\n").contains("reload: every slot"));
    }

    #[test]
    fn the_selected_row_is_on_the_screen() {
        assert_eq!(first_row(0, 100, 10), 0);
        assert_eq!(first_row(50, 100, 10), 45);
        assert_eq!(first_row(99, 100, 10), 90);
        assert_eq!(first_row(3, 5, 10), 0);
    }

    #[test]
    fn one_frame_as_text_holds_the_whole_table_and_no_keys() {
        let model = TopModel::new(test_fixtures::instance_status(), SECOND);
        let text = render_text(&model, 140, SECOND);
        assert!(text.starts_with("● serving 2 of 3 workers"), "{text}");
        assert!(text.contains("backed off") && !text.contains("q leave"), "{text}");
        assert!(text.lines().all(|line| units::width(line) <= 140));
    }
}

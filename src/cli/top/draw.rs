//! The picture: a header, models, routes, books, in whatever room there is.

use super::view::{LEDGER, Model, Route, View};
use ratatui::buffer::{Buffer, Cell};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{self, Block, Paragraph, Row, Table, Widget};

/// Draws it all into this room, with a line at the foot.
pub(super) fn draw(buffer: &mut Buffer, view: &View, foot: Line<'_>) {
    let [head, models, routes, ledger, last] = Layout::vertical([
        Constraint::Length(HEAD_ROWS),
        Constraint::Fill(2),
        Constraint::Fill(1),
        Constraint::Length(rows(view.ledger.len().div_ceil(LEDGER_COLUMNS)) + BORDER_ROWS),
        Constraint::Length(1),
    ])
    .areas(buffer.area);
    Paragraph::new(header(view)).render(head, buffer);
    self::models(view).render(models, buffer);
    self::routes(view).render(routes, buffer);
    self::ledger(view).render(ledger, buffer);
    Paragraph::new(foot).render(last, buffer);
}

/// All of it as text, without a terminal.
pub(super) fn page(view: &View) -> String {
    let tables = [rows(view.models.len()) + 1, rows(view.routes.len()) + 1];
    // Models have two thirds of what is not taken by the rest.
    let [models, routes] = tables.map(|table| table + BORDER_ROWS);
    let ledger = rows(view.ledger.len().div_ceil(LEDGER_COLUMNS)) + BORDER_ROWS;
    let height = routes.max(models.div_ceil(2)) * 3 + ledger + HEAD_ROWS + 1;
    let mut buffer = Buffer::empty(Rect::new(0, 0, PAGE_COLUMNS, height));
    draw(&mut buffer, view, Line::default());
    let lines = buffer.content.chunks(usize::from(PAGE_COLUMNS)).map(|cells| {
        let line: String = cells.iter().map(Cell::symbol).collect();
        line.trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// How many rows that is, of a table that is cut where it would be too long to read.
fn rows(count: usize) -> u16 {
    u16::try_from(count).unwrap_or(ROWS_MAX).min(ROWS_MAX)
}

const LEDGER_COLUMNS: usize = 3;
const HEAD_ROWS: u16 = 2;
const BORDER_ROWS: u16 = 2;
const PAGE_COLUMNS: u16 = 100;
const ROWS_MAX: u16 = 1000;
const MEGABYTE: f64 = 1e6;

fn header(view: &View) -> Vec<Line<'static>> {
    let ready = match view.is_ready {
        true => Span::styled("ready", Style::new().fg(Color::Green)),
        false => Span::styled("NOT READY", Style::new().fg(Color::Red)),
    };
    let facts = format!(
        "  {:.1} requests/s  {:.0} in flight  {:.0} units/s  {:.6} usd/s",
        view.requests_per_s, view.requests_in_flight, view.units_per_s, view.usd_per_s
    );
    let errors = match view.errors_per_s.is_empty() {
        true => Line::styled("no errors", Style::new().add_modifier(Modifier::DIM)),
        false => {
            let of = view.errors_per_s.iter().map(|(kind, rate)| format!("{kind} {rate:.1}/s"));
            Line::styled(of.collect::<Vec<_>>().join("  "), Style::new().fg(Color::Yellow))
        }
    };
    vec![
        Line::from(vec![
            Span::styled("weir ", Style::new().add_modifier(Modifier::BOLD)),
            ready,
            facts.into(),
        ]),
        errors,
    ]
}

fn models(view: &View) -> Table<'static> {
    let seconds = |time: Option<f64>| time.map_or_else(|| "-".to_owned(), |time| format!("{time:.2}"));
    let row = |model: &Model| {
        Row::new([
            model.name.clone(),
            format!("{:.1}", model.requests_per_s),
            seconds(model.first_token_p50_s),
            seconds(model.first_token_p99_s),
            seconds(model.duration_p50_s),
            seconds(model.duration_p99_s),
            format!("{:.0}", model.units_per_s),
            format!("{:.6}", model.usd_per_s),
        ])
    };
    let widths = [
        Constraint::Min(12),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(9),
    ];
    Table::new(view.models.iter().map(row), widths)
        .header(heading(["model", "req/s", "ttft p50", "p99 s", "all p50", "p99 s", "units/s", "usd/s"]))
        .block(Block::bordered().title("models"))
}

fn routes(view: &View) -> Table<'static> {
    let row = |route: &Route| {
        let color = match route.state {
            "closed" => Color::Green,
            "open" => Color::Red,
            _ => Color::Yellow,
        };
        Row::new([
            widgets::Cell::new(route.provider.clone()),
            widgets::Cell::new(route.model.clone()),
            widgets::Cell::new(route.state).style(Style::new().fg(color)),
            widgets::Cell::new(format!("{:.0}", route.attempts_in_flight)),
            widgets::Cell::new(format!("{:.1}", route.attempts_per_s)),
        ])
    };
    let widths = [
        Constraint::Min(12),
        Constraint::Min(12),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(11),
    ];
    Table::new(view.routes.iter().map(row), widths)
        .header(heading(["provider", "model", "circuit", "in flight", "attempts/s"]))
        .block(Block::bordered().title("routes"))
}

fn ledger(view: &View) -> Table<'static> {
    let known =
        LEDGER.iter().filter_map(|(name, metric)| view.ledger.get(metric).map(|value| (*name, *value)));
    let cell = |(name, value): (&str, f64)| {
        let value = if name.ends_with("MB") { value / MEGABYTE } else { value };
        let digits = if value.fract() == 0.0 { 0 } else { 3 };
        format!("{name:<15} {value:.digits$}")
    };
    let cells: Vec<String> = known.map(cell).collect();
    let rows = cells.chunks(LEDGER_COLUMNS).map(|row| Row::new(row.to_vec()));
    let widths = [Constraint::Ratio(1, 3); LEDGER_COLUMNS];
    Table::new(rows, widths).block(Block::bordered().title("ledger and process"))
}

fn heading<const N: usize>(names: [&'static str; N]) -> Row<'static> {
    Row::new(names).style(Style::new().add_modifier(Modifier::BOLD))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::scrape::Samples;
    use crate::metrics::{Level, Metrics};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn drawn(view: &View, foot: &'static str, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame.buffer_mut(), view, foot.into())).unwrap();
        terminal.backend().to_string()
    }

    fn view() -> View {
        let metrics = Samples::parse(
            "weir_ready 1\nweir_requests_total{kind=\"ok\",model=\"tiny\"} 30\nweir_route_state{model=\"tiny\",provider=\"main\"} 3\n\
             weir_ledger_leases 7\nprocess_resident_memory_bytes 2500000\n",
        );
        View::between(&Samples::default(), &metrics.unwrap(), 2.0)
    }

    #[test]
    fn what_is_measured_is_shown_in_whatever_room_there_is() {
        let text = drawn(&view(), "q quits", 80, 24);
        for telling in [
            "weir ready  15.0 requests/s",
            "tiny              15.0 ",
            "main",
            "open",
            "leases          7",
            "memory MB       2.500",
            "q quits",
            "no errors",
        ] {
            assert!(text.contains(telling), "{telling}: {text}");
        }
        assert!(drawn(&view(), "", 20, 5).contains("weir ready"));
        for (width, height) in [(1, 1), (3, 9), (40, 10), (250, 80)] {
            drawn(&view(), "q quits", width, height);
        }
    }

    #[test]
    fn a_page_has_a_line_for_every_model_and_route_there_is() {
        let mut view = view();
        view.models = vec![view.models[0].clone(); 50];
        view.routes = vec![view.routes[0].clone(); 20];
        let text = page(&view);
        assert_eq!(text.matches("15.0").count(), 51, "{text}");
        assert_eq!(text.matches(" open ").count(), 20, "{text}");
        view.models.truncate(1);
        assert_eq!(page(&view).matches(" open ").count(), 20);
    }

    #[test]
    fn every_number_that_is_asked_for_is_one_that_the_process_has() {
        let metrics = Metrics::new().unwrap();
        metrics.set(Level::LedgerLeases, 3.0);
        let samples = Samples::parse(&metrics.render().unwrap()).unwrap();
        let view = View::between(&Samples::default(), &samples, 1.0);
        assert!(!view.is_ready && view.models.is_empty());
        let missing: Vec<_> = LEDGER.iter().filter(|(_, metric)| !view.ledger.contains_key(metric)).collect();
        assert!(missing.is_empty(), "{missing:?}");
        assert_eq!(view.ledger["weir_ledger_leases"], 3.0);
    }
}

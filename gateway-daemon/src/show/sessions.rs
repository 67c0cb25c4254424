//! `weir sessions`.

use super::{
    line,
    table::{Align, Table},
};
use crate::record::SessionSummary;

/// Longest name that a column shows.
const NAME: usize = 40;

/// The table of these sessions.
pub fn sessions(summaries: &[SessionSummary]) -> String {
    // A column of its own, where there is anything to say: it must not be overlooked.
    let observed = summaries.iter().any(|summary| summary.start.observes);
    let mut table = Table::new()
        .column("session", Align::Left)
        .column("started", Align::Left)
        .column("ended", Align::Left)
        .column("agent", Align::Left)
        .column("connection", Align::Left)
        .column("requests", Align::Right)
        .column("refused", Align::Right);
    if observed {
        table = table.column("LET PASS", Align::Right);
    }
    table = table.column("rows", Align::Right).column("how it ended", Align::Left);
    for SessionSummary { start, started, end, ended } in summaries {
        let count =
            |of: fn(&crate::record::SessionEnd) -> u64| end.as_ref().map_or("-".into(), |end| of(end).to_string());
        let mut row = vec![
            start.session.to_string(),
            started.to_string(),
            ended.map_or("open".into(), |ended| ended.to_string()),
            line(&start.agent, NAME),
            line(&start.connection, NAME),
            count(|end| end.requests),
            count(|end| end.refused),
        ];
        if observed {
            row.push(count(|end| end.observed));
        }
        row.push(count(|end| end.rows));
        row.push(end.as_ref().map_or(String::new(), |end| line(&end.reason, 80)));
        table.row(row);
    }
    table.render(0)
}

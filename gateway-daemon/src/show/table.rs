//! Columns on a terminal, as wide as what they show.

use unicode_width::UnicodeWidthStr;

/// A table whose cells are already safe to show.
#[derive(Debug, Clone, Default)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

#[derive(Debug, Clone)]
struct Column {
    head: String,
    align: Align,
}

/// Which side of its column a cell keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

impl Table {
    /// A table without columns.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a column.
    #[must_use]
    pub fn column(mut self, head: impl Into<String>, align: Align) -> Self {
        self.columns.push(Column { head: head.into(), align });
        self
    }

    /// Adds a row; cells behind the last column are left out by none, so give one for each.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// How many rows it has.
    pub const fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it has no row.
    pub const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table with `indent` spaces before each line. A cell of several lines keeps its column.
    pub fn render(&self, indent: usize) -> String {
        let widths: Vec<usize> = (0..self.columns.len()).map(|at| self.width(at)).collect();
        let mut out = String::new();
        let heads: Vec<String> = self.columns.iter().map(|column| column.head.clone()).collect();
        self.line(&heads, &widths, indent, &mut out);
        let rules: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
        self.line(&rules, &widths, indent, &mut out);
        for row in &self.rows {
            self.line(row, &widths, indent, &mut out);
        }
        out
    }

    fn width(&self, at: usize) -> usize {
        let head = self.columns.get(at).map_or(0, |column| column.head.width());
        let cells = self.rows.iter().filter_map(|row| row.get(at)).flat_map(|cell| cell.lines());
        cells.map(UnicodeWidthStr::width).max().unwrap_or(0).max(head)
    }

    fn line(&self, cells: &[String], widths: &[usize], indent: usize, out: &mut String) {
        let height = cells.iter().map(|cell| cell.lines().count()).max().unwrap_or(0).max(1);
        for part in 0..height {
            let mut text = " ".repeat(indent);
            for (at, (cell, width)) in cells.iter().zip(widths).enumerate() {
                if at > 0 {
                    text.push_str("  ");
                }
                let shown = cell.lines().nth(part).unwrap_or("");
                let gap = " ".repeat(width.saturating_sub(shown.width()));
                match self.columns.get(at).map_or(Align::Left, |column| column.align) {
                    Align::Left => text.extend([shown, &gap]),
                    Align::Right => text.extend([&gap, shown]),
                }
            }
            out.push_str(text.trim_end());
            out.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_they_show() {
        let mut table = Table::new().column("name", Align::Left).column("n", Align::Right);
        table.row(vec!["東京".into(), "1".into()]);
        table.row(vec!["élan".into(), "1000".into()]);
        table.row(vec!["two\nlines".into(), "7".into()]);
        insta::assert_snapshot!(table.render(2), @r"
          name      n
          ─────  ────
          東京      1
          élan   1000
          two       7
          lines
        ");
    }
}

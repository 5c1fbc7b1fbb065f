//! Columns of text.

use std::fmt::Write as _;

/// How a cell stands out where there is colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Style {
    /// Not at all.
    #[default]
    Plain,
    /// All is well.
    Good,
    /// Look here.
    Warn,
    /// Look here first.
    Bad,
    /// A heading.
    Strong,
    /// Less important.
    Faint,
}

impl Style {
    /// `text` in this style (ECMA-48 SGR), or as it is without colour.
    pub(crate) fn paint(self, text: &str, colour: bool) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            Self::Good => "32",
            Self::Warn => "33",
            Self::Bad => "1;31",
            Self::Strong => "1",
            Self::Faint => "2",
        };
        if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// One cell.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    text: String,
    style: Style,
    right: bool,
}

impl Cell {
    /// Text, to the left.
    pub(crate) fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), style: Style::Plain, right: false }
    }

    /// Text, to the left, in a style.
    pub(crate) fn styled(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style, right: false }
    }

    /// A number, to the right.
    pub(crate) fn number(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style, right: true }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

/// Rows below headings, two spaces between the columns.
pub(crate) struct Table {
    rows: Vec<Vec<Cell>>,
}

const GAP: &str = "  ";

impl Table {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|heading| Cell::styled(*heading, Style::Strong)).collect()] }
    }

    /// Adds a row; a column whose cells are to the right has its heading to the right.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        for (heading, cell) in self.rows[0].iter_mut().zip(&cells) {
            heading.right |= cell.right;
        }
        self.rows.push(cells);
    }

    /// How wide it is.
    pub(crate) fn width(&self) -> usize {
        let widths = self.widths();
        widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1)
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        (0..columns)
            .map(|column| {
                self.rows.iter().filter_map(|row| row.get(column)).map(Cell::width).max().unwrap_or(0)
            })
            .collect()
    }

    /// Writes it, each line after `indent`, without spaces at the ends of lines.
    pub(crate) fn write(&self, text: &mut String, indent: &str, colour: bool) {
        let widths = self.widths();
        for row in &self.rows {
            let mut line = indent.to_owned();
            // What pads a cell is only written once another cell follows.
            let mut owed = 0;
            for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if i > 0 {
                    owed += GAP.len();
                }
                let pad = width - cell.width();
                if cell.right {
                    owed += pad;
                }
                if !cell.text.is_empty() {
                    let _ = write!(line, "{:owed$}{}", "", cell.style.paint(&cell.text, colour));
                    owed = 0;
                } else {
                    owed += cell.width();
                }
                if !cell.right {
                    owed += pad;
                }
            }
            text.push_str(&line);
            text.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_do_not_trail() {
        let mut table = Table::new(&["A", "NUMBER", "C"]);
        table.row(vec![Cell::plain("long cell"), Cell::number("7", Style::Bad), Cell::plain("")]);
        table.row(vec![Cell::plain(""), Cell::number("12345678", Style::Plain), Cell::plain("x")]);
        let mut text = String::new();
        table.write(&mut text, "  ", false);
        assert_eq!(text, "  A            NUMBER  C\n  long cell         7\n             12345678  x\n");
        assert_eq!(table.width(), 9 + 2 + 8 + 2 + 1);
    }

    #[test]
    fn colour_does_not_shift_columns() {
        let mut table = Table::new(&["A", "B"]);
        table.row(vec![Cell::styled("up", Style::Good), Cell::plain("b")]);
        let mut text = String::new();
        table.write(&mut text, "", true);
        assert_eq!(text, "\x1b[1mA\x1b[0m   \x1b[1mB\x1b[0m\n\x1b[32mup\x1b[0m  b\n");
    }
}

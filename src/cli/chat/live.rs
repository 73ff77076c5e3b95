//! The part of the screen that is drawn anew: a thought while it streams, a line of progress.
//!
//! It wraps its text by itself, with the terminal's own wrapping off while it draws, so that each of its rows is
//! exactly one row of the screen whatever the terminal thinks of an emoji's width. It never grows over half the
//! screen: of a longer text the last rows show. So it can always be taken away again.

use std::collections::VecDeque;
use std::io::{self, Write};

use crossterm::queue;
use crossterm::style::{Attribute, SetAttribute};
use crossterm::terminal::{Clear, ClearType, DisableLineWrap, EnableLineWrap};
use unicode_width::UnicodeWidthChar;

/// Columns between two tab stops.
const TAB: usize = 8;

/// Columns and rows of the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) columns: usize,
    pub(super) rows: usize,
}

impl Size {
    /// The terminal's size now; 80 by 24 where it does not say.
    pub(super) fn of_terminal() -> Self {
        match crossterm::terminal::size() {
            Ok((columns, rows)) if columns > 0 && rows > 0 => {
                Size { columns: columns.into(), rows: rows.into() }
            }
            _ => Size { columns: 80, rows: 24 },
        }
    }

    /// Columns that a row may fill: the last stays free, for characters wider than they say.
    fn usable(self) -> usize {
        self.columns.saturating_sub(1).max(2)
    }

    /// Rows that the area may take.
    fn most_rows(self) -> usize {
        (self.rows / 2).max(1)
    }
}

#[derive(Debug, Default)]
struct Row {
    text: String,
    /// Columns that `text` fills.
    width: usize,
    /// The text goes on in the next row without a line break.
    wraps: bool,
}

/// An area of the screen that ends at the cursor.
pub(super) struct Live {
    size: Size,
    dim: bool,
    /// The rows on the screen, from the top; the cursor stands at the end of the last.
    rows: VecDeque<Row>,
    /// The next character belongs to the one before (a joined emoji).
    joined: bool,
}

impl Live {
    /// An empty area at the cursor, which must stand in the first column.
    pub(super) fn new(size: Size, dim: bool) -> Self {
        Live { size, dim, rows: VecDeque::new(), joined: false }
    }

    /// Whether it shows nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Appends text. Line feeds break lines; other control characters must not be in it.
    pub(super) fn push(&mut self, text: &str, size: Size, out: &mut impl Write) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        if size != self.size {
            self.resize(size, out)?;
        }
        let drawn = self.rows.len();
        let drawn_bytes = self.rows.back().map_or(0, |row| row.text.len());
        self.lay_out(text);
        queue!(out, DisableLineWrap)?;
        if self.rows.len() <= size.most_rows() {
            self.style(out)?;
            for (i, row) in self.rows.iter().enumerate().skip(drawn.saturating_sub(1)) {
                let known = if i + 1 == drawn { drawn_bytes } else { 0 };
                let line_break = if i == 0 || i + 1 == drawn { "" } else { "\r\n" };
                write!(out, "{line_break}{}", &row.text[known..])?;
            }
        } else {
            go_up(drawn.saturating_sub(1), out)?;
            self.rows.drain(..self.rows.len() - size.most_rows());
            self.style(out)?;
            self.draw(out)?;
        }
        queue!(out, SetAttribute(Attribute::Reset), EnableLineWrap)?;
        out.flush()
    }

    /// Shows one line instead of what was there, cut to the terminal's width.
    pub(super) fn replace(&mut self, line: &str, size: Size, out: &mut impl Write) -> io::Result<()> {
        self.erase(size, out)?;
        let mut width = 0;
        let end = line.char_indices().find_map(|(at, c)| {
            width += c.width().unwrap_or(0);
            (width > size.usable()).then_some(at)
        });
        self.push(&line[..end.unwrap_or(line.len())], size, out)
    }

    /// Takes it all away; the cursor stands where the area began.
    pub(super) fn erase(&mut self, size: Size, out: &mut impl Write) -> io::Result<()> {
        if !self.is_empty() {
            go_up(self.rows_on_screen(size) - 1, out)?;
            queue!(out, Clear(ClearType::FromCursorDown))?;
        }
        self.rows.clear();
        self.joined = false;
        self.size = size;
        Ok(())
    }

    /// Leaves what it shows on the screen; the cursor stands below.
    pub(super) fn keep(&mut self, out: &mut impl Write) -> io::Result<()> {
        if !self.is_empty() {
            write!(out, "\r\n")?;
        }
        self.rows.clear();
        Ok(())
    }

    /// Rows that the text takes after the terminal changed its size: most terminals break rows that have become
    /// too long, and none joins rows that were broken by a line feed.
    fn rows_on_screen(&self, size: Size) -> usize {
        let rows = |row: &Row| row.width.div_ceil(size.columns.max(1)).max(1);
        self.rows.iter().map(rows).sum::<usize>().min(size.rows.max(1))
    }

    fn resize(&mut self, size: Size, out: &mut impl Write) -> io::Result<()> {
        let rows = std::mem::take(&mut self.rows);
        let before = Live { rows, ..Live::new(self.size, self.dim) };
        if before.is_empty() {
            self.size = size;
            return Ok(());
        }
        go_up(before.rows_on_screen(size) - 1, out)?;
        queue!(out, Clear(ClearType::FromCursorDown), DisableLineWrap)?;
        self.size = size;
        for (i, row) in before.rows.iter().enumerate() {
            self.lay_out(&row.text);
            if !row.wraps && i + 1 < before.rows.len() {
                self.lay_out("\n");
            }
        }
        self.rows.drain(..self.rows.len().saturating_sub(size.most_rows()));
        self.style(out)?;
        self.draw(out)?;
        queue!(out, SetAttribute(Attribute::Reset), EnableLineWrap)
    }

    /// Breaks text into rows behind those that are there.
    fn lay_out(&mut self, text: &str) {
        for c in text.chars() {
            if self.rows.is_empty() {
                self.rows.push_back(Row::default());
            }
            if c == '\n' {
                self.rows.push_back(Row::default());
                continue;
            }
            let last = self.rows.len() - 1;
            let at = self.rows[last].width;
            let width = match c {
                '\t' => TAB - at % TAB,
                // Terminals that do not join pictures are why wrapping is off.
                _ if self.joined && c.width() == Some(2) => 0,
                _ => c.width().unwrap_or(0),
            };
            self.joined = c == '\u{200d}';
            if at + width > self.size.usable() && at > 0 {
                self.rows[last].wraps = true;
                self.rows.push_back(Row::default());
            }
            let row = self.rows.back_mut().expect("a row was pushed");
            if c == '\t' {
                let width = width.min(self.size.usable() - row.width);
                row.text.extend(std::iter::repeat_n(' ', width));
                row.width += width;
            } else {
                row.text.push(c);
                row.width += width;
            }
        }
    }

    /// Draws all rows from the cursor on, over what is there.
    fn draw(&self, out: &mut impl Write) -> io::Result<()> {
        for (i, row) in self.rows.iter().enumerate() {
            let line_break = if i == 0 { "" } else { "\r\n" };
            write!(out, "{line_break}{}", row.text)?;
            queue!(out, Clear(ClearType::UntilNewLine))?;
        }
        queue!(out, Clear(ClearType::FromCursorDown))
    }

    fn style(&self, out: &mut impl Write) -> io::Result<()> {
        if self.dim { queue!(out, SetAttribute(Attribute::Dim)) } else { Ok(()) }
    }
}

/// To the first column of the row that stands `rows` higher.
fn go_up(rows: usize, out: &mut impl Write) -> io::Result<()> {
    write!(out, "\r")?;
    // Zero would move by one.
    if rows > 0 { queue!(out, crossterm::cursor::MoveUp(rows.min(u16::MAX.into()) as u16)) } else { Ok(()) }
}

#[cfg(test)]
pub(super) mod tests;

//! What commands print.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{Cell, Row, Table, presets};
use rustix::termios::tcgetwinsize;
use serde::Serialize;
use time::OffsetDateTime;

/// Spaces between two columns.
const GAP: usize = 2;
/// Least width to which a column is cut.
const CUT_MIN: usize = 6;

/// Prints a value as one line of JSON on standard output.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    let line = serde_json::to_string(value).context("cannot write JSON")?;
    print_line(&line)
}

/// Whether JSON goes to standard output, which then has nothing else.
pub fn is_stdout(json: Option<&Path>) -> bool {
    json.is_some_and(|path| path.as_os_str() == "-")
}

/// Fails where a result that is asked for could not be written: it may take hours to come.
pub fn check_json(path: Option<&Path>) -> Result<()> {
    let Some(path) = path.filter(|path| !is_stdout(Some(path))) else { return Ok(()) };
    let is_new = !path.exists();
    let opened = File::options().append(true).create(true).open(path);
    opened.with_context(|| format!("cannot write {}", path.display()))?;
    if is_new {
        // It is written as a whole in the end.
        let _ = fs::remove_file(path);
    }
    Ok(())
}

/// Writes the result where it was asked for.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    if is_stdout(Some(path)) {
        return print_json(value);
    }
    let text = serde_json::to_string_pretty(value)? + "\n";
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Prints one line; a reader that has gone away is no error.
pub fn print_line(line: &str) -> Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

/// Says one line beside the result, on standard error. That may be closed, or a file on a disk that is full: no reason to end.
pub fn say(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Asks the user at the terminal; the answer in small letters. A question that cannot be shown is an error, as nobody answers it.
pub fn ask(question: &str) -> Result<String> {
    write!(io::stderr(), "{question}").context("cannot ask")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    Ok(answer.trim().to_lowercase())
}

/// A table in the style of kubectl: headings and aligned columns, no lines.
pub fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(headings.to_vec());
    for column in table.column_iter_mut() {
        column.set_padding((0, GAP as u16));
    }
    table
}

/// Prints a table. On a terminal each row is one line of it: the widest columns are cut.
pub fn print_table(table: &Table) -> Result<()> {
    print_line(&fitted(table, terminal_size().map(|(columns, _)| columns)))
}

/// Columns and lines of the terminal that standard output is, if it is one.
pub fn terminal_size() -> Option<(usize, usize)> {
    let size = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_col > 0)?;
    Some((size.ws_col.into(), size.ws_row.into()))
}

/// A table of at most so many characters in a row, if there is room for some of each column.
fn fitted(whole: &Table, width: Option<usize>) -> String {
    let text = whole.trim_fmt();
    let Some(width) = width.filter(|width| text.lines().any(|line| line.chars().count() > *width)) else { return text };
    let cells = |row: &Row| row.cell_iter().map(Cell::content).collect::<Vec<_>>();
    let rows: Vec<Vec<String>> = whole.header().into_iter().chain(whole.row_iter()).map(cells).collect();
    let mut widths = vec![0; rows.iter().map(Vec::len).max().unwrap_or(0)];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let gaps = GAP * widths.len().saturating_sub(1);
    let mut excess = (widths.iter().sum::<usize>() + gaps).saturating_sub(width);
    while excess > 0 {
        let Some(widest) = widths.iter_mut().max().filter(|width| **width > CUT_MIN) else { break };
        *widest -= 1;
        excess -= 1;
    }
    let mut rows = rows.iter().map(|row| row.iter().zip(&widths).map(|(cell, &width)| cut(cell, width)));
    let headings: Vec<String> = rows.next().into_iter().flatten().collect();
    let mut narrow = table(&headings.iter().map(String::as_str).collect::<Vec<_>>());
    rows.for_each(|row| _ = narrow.add_row(row));
    // Whoever has a terminal that is narrower than all of that has it cut.
    narrow.trim_fmt().lines().map(|line| cut(line, width)).collect::<Vec<_>>().join("\n")
}

/// A text of at most so many characters.
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['\u{2026}']).collect()
}

/// A bandwidth for people, with a decimal unit as networks have them.
pub fn human_bits_per_s(bits_per_s: f64) -> String {
    match bits_per_s {
        rate if rate < 999.5e3 => format!("{:.1} kbit/s", rate / 1e3),
        rate if rate < 999.5e6 => format!("{:.1} Mbit/s", rate / 1e6),
        rate => format!("{:.1} Gbit/s", rate / 1e9),
    }
}

/// A time for people, given in ms since 1970: in UTC, as in `2026-03-01 12:30:05.250`.
pub fn unix_time(unix_ms: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000);
    let Ok(time) = time else { return format!("{unix_ms} ms since 1970") };
    let (date, (hour, minute, second, ms)) = (time.date(), time.time().as_hms_milli());
    let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{ms:03}")
}

/// A number of bytes for people, with a binary unit.
pub fn human_bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After hours of measuring it was said that the file cannot be written.
    #[test]
    fn row_23_where_a_result_cannot_go_is_said_before_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("result.json");
        check_json(None).unwrap();
        check_json(Some(Path::new("-"))).unwrap();
        check_json(Some(&file)).unwrap();
        assert!(!file.exists() && !Path::new("-").exists());
        fs::write(&file, "before").unwrap();
        check_json(Some(&file)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "before");
        for bad in [folder.path().to_owned(), folder.path().join("missing/result.json")] {
            let error = format!("{:#}", check_json(Some(&bad)).unwrap_err());
            assert!(error.starts_with(&format!("cannot write {}", bad.display())), "{error}");
        }
    }

    /// Rows wrapped, and columns stood nowhere.
    #[test]
    fn row_24_a_table_with_a_long_state_fits_its_terminal_and_is_whole_elsewhere() {
        let mut rows = table(&["NAME", "POWER", "HOST", "FAULT TOLERANCE"]);
        let state = "need secondary (no host for it: host b has 1.20 GiB of memory left and 2.00 GiB are needed)";
        rows.add_row(["shop", "on", "a", state]).add_row(["a-name-that-is-longer-than-others", "off", "b", "-"]);
        let whole = fitted(&rows, None);
        assert!(whole.contains(state) && whole == fitted(&rows, Some(200)), "{whole}");
        for width in [40, 80, 100] {
            let text = fitted(&rows, Some(width));
            assert!(text.lines().count() == 3 && text.lines().all(|line| line.chars().count() <= width), "{text}");
            assert!(text.contains("POWER") && text.contains("HOST") && text.contains("need s"), "{width}:\n{text}");
        }
        let text = fitted(&rows, Some(100));
        assert!(text.contains("a-name-that-is-longer-than-others") && text.contains('\u{2026}'), "{text}");
        assert!(fitted(&rows, Some(10)).lines().all(|line| line.chars().count() <= 10));
        assert!(fitted(&table(&["NAME"]), Some(1)).chars().count() == 1);
    }

    #[test]
    fn a_time_is_that_of_the_calendar() {
        assert_eq!(unix_time(0), "1970-01-01 00:00:00.000");
        assert_eq!(unix_time(1_709_210_096_789), "2024-02-29 12:34:56.789");
        assert_eq!(unix_time(u64::MAX), "18446744073709551615 ms since 1970");
    }
}

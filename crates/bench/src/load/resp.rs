//! As much of the Redis serialization protocol (RESP2) as the measuring clients need.
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>

use std::io::Write;

/// Longest line of a reply, in bytes.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Longest bulk string, in bytes.
const BULK_BYTES_MAX: usize = 1 << 20;

/// A reply of the kinds that are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `:1`
    Integer(i64),
    /// A simple or a bulk string.
    Text(Vec<u8>),
    /// The null bulk string: no such key.
    Nil,
    /// `-ERR ...`
    Error(String),
}

/// Appends a command as an array of bulk strings.
pub fn write_command(out: &mut Vec<u8>, words: &[&[u8]]) {
    // Writing to memory does not fail.
    let _ = write!(out, "*{}\r\n", words.len());
    for word in words {
        let _ = write!(out, "${}\r\n", word.len());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// The first reply in `bytes` and its length; `None` if it is not complete. The error says what is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<Option<(Reply, usize)>, String> {
    let Some(end) = bytes.windows(2).take(LINE_BYTES_MAX).position(|pair| pair == b"\r\n") else {
        return if bytes.len() > LINE_BYTES_MAX { Err("a line without end".to_owned()) } else { Ok(None) };
    };
    let (kind, line) = bytes.get(..end).and_then(<[u8]>::split_first).ok_or_else(|| "an empty line".to_owned())?;
    let after = end + 2;
    let number = || {
        std::str::from_utf8(line)
            .ok()
            .and_then(|text| text.parse::<i64>().ok())
            .ok_or_else(|| format!("not a number: {:?}", String::from_utf8_lossy(line)))
    };
    let reply = match kind {
        b'+' => Reply::Text(line.to_vec()),
        b'-' => Reply::Error(String::from_utf8_lossy(line).into_owned()),
        b':' => Reply::Integer(number()?),
        b'$' => match number()? {
            -1 => Reply::Nil,
            len => {
                let len = usize::try_from(len).ok().filter(|&len| len <= BULK_BYTES_MAX);
                let len = len.ok_or_else(|| "a string of impossible length".to_owned())?;
                return match bytes.get(after..after + len + 2) {
                    None => Ok(None),
                    Some(string) => match string.strip_suffix(b"\r\n") {
                        Some(string) => Ok(Some((Reply::Text(string.to_vec()), after + len + 2))),
                        None => Err("a string without end".to_owned()),
                    },
                };
            }
        },
        other => return Err(format!("a reply of the kind {:?}", char::from(*other))),
    };
    Ok(Some((reply, after)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_parsed_once_they_are_complete() {
        for (text, reply) in [
            (":42\r\n", Reply::Integer(42)),
            ("+OK\r\n", Reply::Text(b"OK".to_vec())),
            ("$5\r\na\r\nbc\r\n", Reply::Text(b"a\r\nbc".to_vec())),
            ("$0\r\n\r\n", Reply::Text(vec![])),
            ("$-1\r\n", Reply::Nil),
            ("-ERR no\r\n", Reply::Error("ERR no".to_owned())),
        ] {
            let longer = [text.as_bytes(), b":7\r\n"].concat();
            assert_eq!(parse(&longer), Ok(Some((reply, text.len()))));
            for end in 0..text.len() {
                assert_eq!(parse(&text.as_bytes()[..end]), Ok(None), "{:?}", &text[..end]);
            }
        }
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for text in [":x\r\n", "$99999999999\r\n", "$-2\r\n", "$1\r\nabc", "*1\r\n", "\r\n", "hello\r\n"] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(parse(&vec![b'+'; LINE_BYTES_MAX + 2]).is_err());
    }

    #[test]
    fn a_command_is_an_array_of_strings() {
        let mut out = Vec::new();
        write_command(&mut out, &[b"INCR", b"a b"]);
        assert_eq!(out, b"*2\r\n$4\r\nINCR\r\n$3\r\na b\r\n");
    }
}

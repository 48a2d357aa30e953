//! A port of BlockBottleneck2d: what is not written yet says so.
//!
//!     rustc -O port.rs
//!     mdnc-spec run --subject cmd:./port --until-first-failure
//!
//! Requests are canonical (PROTOCOL.md), so that `find` is enough to read them.

use std::io::{self, BufRead, Write};

/// A request: its header, and the bytes of its tensors, from which `data_offsets` count.
#[allow(dead_code)]
struct Request {
    header: String,
    body: Vec<u8>,
}

impl Request {
    /// The next request; None at the end of standard input, and an error where it ends inside a request.
    fn read(input: &mut impl BufRead) -> io::Result<Option<Request>> {
        if input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut prefix = [0; 8];
        input.read_exact(&mut prefix)?;
        let mut bytes = vec![0; u64::from_le_bytes(prefix) as usize];
        input.read_exact(&mut bytes)?;
        let mut request = Request { header: String::from_utf8(bytes).expect("ASCII"), body: Vec::new() };
        request.body = vec![0; request.metadata("bytes").parse().expect("the length of the tensors")];
        input.read_exact(&mut request.body)?;
        Ok(Some(request))
    }

    /// The text of a key of the metadata, such as "op" or "cfg.in_planes"; empty if it is not there.
    fn metadata(&self, key: &str) -> &str {
        let quoted = format!("\"{key}\":\"");
        let Some(at) = self.header.find(&quoted) else { return "" };
        let rest = &self.header[at + quoted.len()..];
        &rest[..rest.find('"').unwrap_or(0)]
    }
}

/// Answer with metadata alone.
fn reply(output: &mut impl Write, id: &str, metadata: &[(&str, &str)]) -> io::Result<()> {
    let more: String = metadata.iter().map(|(key, value)| format!(",\"{key}\":\"{value}\"")).collect();
    let header = format!("{{\"__metadata__\":{{\"id\":\"{id}\"{more}}}}}");
    output.write_all(&(header.len() as u64).to_le_bytes())?;
    output.write_all(header.as_bytes())?;
    output.flush()
}

fn main() -> io::Result<()> {
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    while let Some(request) = Request::read(&mut input)? {
        let (op, id) = (request.metadata("op"), request.metadata("id"));
        match op {
            "stop" => break,
            "hello" => reply(
                &mut output,
                id,
                &[
                    ("status", "ok"),
                    ("protocol", "1"),
                    ("name", "my port"),
                    ("version", "0"),
                    ("language", "Rust"),
                    ("ops", "describe,forward"),
                    ("modes", "train,eval"),
                    ("dtypes", "F32"),
                    ("accumulation", "float32"),
                    ("determinism", "bitwise"),
                ],
            )?,
            "describe" | "forward" => {
                let message = format!("{op} is not written yet");
                reply(&mut output, id, &[("status", "error"), ("code", "internal"), ("message", &message)])?
            }
            _ => reply(&mut output, id, &[("status", "unsupported"), ("feature", op)])?,
        }
    }
    Ok(())
}

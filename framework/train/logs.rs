//! Metrics on disk: `results.csv` (a row an epoch), `metrics.jsonl` (a line a record) and a
//! TensorBoard event file.
//!
//! Each file remembers how long it is. A checkpoint stores these lengths ([`Logs::sync`]), and
//! [`Logs::resume`] cuts the files back to them, so a resumed run leaves no record twice and none
//! out. Only the event file holds wall-clock times: the other two are equal for equal runs.

use crate::checkpoint::{Error, Result};
use prost::Message;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const CSV: &str = "results.csv";
const JSONL: &str = "metrics.jsonl";
const EVENTS_PREFIX: &str = "events.out.tfevents.";
const CSV_HEADER_BYTES_MAX: u64 = 64 << 10;

/// How long each file was when a checkpoint was made; part of its `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOffsets {
    pub csv: u64,
    pub jsonl: u64,
    pub events: u64,
    /// Name of the event file in the run folder.
    pub events_file: String,
}

/// The three writers of a run.
pub struct Logs {
    csv: Appender,
    /// The columns of `results.csv`, once its first row is written.
    columns: Option<Vec<String>>,
    jsonl: Appender,
    events: Appender,
    events_file: String,
}

impl Logs {
    /// Starts the three files anew in a run folder; event files of earlier runs in it are deleted.
    pub fn create(run: &Path) -> Result<Logs> {
        for entry in std::fs::read_dir(run).map_err(Error::io(run))? {
            let path = entry.map_err(Error::io(run))?.path();
            if path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(EVENTS_PREFIX)) {
                std::fs::remove_file(&path).map_err(Error::io(&path))?;
            }
        }
        let events_file = format!("{EVENTS_PREFIX}{:010}.lacuna", wall_time() as u64);
        let mut logs = Logs {
            csv: Appender::open(run.join(CSV), 0)?,
            columns: None,
            jsonl: Appender::open(run.join(JSONL), 0)?,
            events: Appender::open(run.join(&events_file), 0)?,
            events_file,
        };
        logs.write_version()?;
        Ok(logs)
    }

    /// Continues where a checkpoint was made: cuts the files to `offsets`. A file that is shorter is
    /// an error; one that was deleted is begun anew.
    pub fn resume(run: &Path, offsets: &LogOffsets) -> Result<Logs> {
        let name = &offsets.events_file;
        if !name.starts_with(EVENTS_PREFIX) || name.contains(['/', '\\', '\0']) {
            return Err(Error::argument("log offsets", format!("{name:?} is not the name of an event file")));
        }
        let csv = Appender::open(run.join(CSV), offsets.csv)?;
        let columns = csv.first_line()?.map(|line| line.split(',').map(str::to_owned).collect());
        let mut logs = Logs {
            csv,
            columns,
            jsonl: Appender::open(run.join(JSONL), offsets.jsonl)?,
            events: Appender::open(run.join(name), offsets.events)?,
            events_file: name.clone(),
        };
        if logs.events.offset == 0 {
            logs.write_version()?;
        }
        Ok(logs)
    }

    /// A row of `results.csv`. The first row sets the columns, all others must have the same.
    pub fn epoch(&mut self, row: &[(&str, f64)]) -> Result<()> {
        if let Some((name, _)) =
            row.iter().find(|(name, _)| name.is_empty() || name.contains([',', '"', '\n', '\r']))
        {
            return Err(Error::argument("column", format!("{name:?} cannot stand in a CSV header")));
        }
        let columns = row.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>();
        let values = row.iter().map(|(_, value)| value.to_string()).collect::<Vec<_>>().join(",");
        match &self.columns {
            Some(known) if *known != columns => {
                let why = format!("a row of {columns:?} does not fit the columns {known:?}");
                Err(Error::argument("results.csv", why))
            }
            Some(_) => self.csv.append(format!("{values}\n").as_bytes()),
            None => {
                self.csv.append(format!("{}\n{values}\n", columns.join(",")).as_bytes())?;
                self.columns = Some(columns);
                Ok(())
            }
        }
    }

    /// Values at a training step: a line of `metrics.jsonl` (`{"step":..,"<name>":..}`, NaN and
    /// infinities as null) and a scalar for each in the event file.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut line = format!("{{\"step\":{step}");
        for (name, value) in values {
            line += &format!(",{}:{}", Value::from(*name), Value::from(*value));
        }
        self.jsonl.append((line + "}\n").as_bytes())?;
        self.timings(step, values)
    }

    /// Values at a step that differ from run to run, as times do: for the event file alone.
    pub fn timings(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let value =
            |&(tag, v): &(&str, f64)| SummaryValue { tag: tag.to_owned(), simple_value: Some(v as f32) };
        let summary = Summary { value: values.iter().map(value).collect() };
        self.event(&Event {
            step: i64::try_from(step).unwrap_or(i64::MAX),
            summary: Some(summary),
            ..Event::now()
        })
    }

    /// Hands what is buffered to the system, for those who watch the files.
    pub fn flush(&mut self) -> Result<()> {
        [&mut self.csv, &mut self.jsonl, &mut self.events].into_iter().try_for_each(Appender::flush)
    }

    /// Waits until all records are on the disk; the lengths belong into the checkpoint made next.
    pub fn sync(&mut self) -> Result<LogOffsets> {
        [&mut self.csv, &mut self.jsonl, &mut self.events].into_iter().try_for_each(Appender::sync)?;
        Ok(LogOffsets {
            csv: self.csv.offset,
            jsonl: self.jsonl.offset,
            events: self.events.offset,
            events_file: self.events_file.clone(),
        })
    }

    fn write_version(&mut self) -> Result<()> {
        self.event(&Event { file_version: Some("brain.Event:2".to_owned()), ..Event::now() })
    }

    fn event(&mut self, event: &Event) -> Result<()> {
        self.events.append(&tf_record(&event.encode_to_vec()))
    }
}

/// A file that only grows, and knows its length.
struct Appender {
    path: PathBuf,
    file: BufWriter<File>,
    offset: u64,
}

impl Appender {
    /// Cuts the file to `offset` bytes, which it must have; a new file begins at 0.
    fn open(path: PathBuf, offset: u64) -> Result<Appender> {
        let offset = if path.exists() { offset } else { 0 };
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(Error::io(&path))?;
        let len = file.metadata().map_err(Error::io(&path))?.len();
        if len < offset {
            let why = format!(
                "it has {len} bytes, but {offset} when the checkpoint was made; restore or delete it"
            );
            return Err(Error::damaged(&path, why));
        }
        file.set_len(offset).and_then(|()| file.seek(SeekFrom::Start(offset))).map_err(Error::io(&path))?;
        Ok(Appender { path, file: BufWriter::new(file), offset })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io(&self.path))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(Error::io(&self.path))
    }

    fn sync(&mut self) -> Result<()> {
        self.flush()?;
        self.file.get_ref().sync_all().map_err(Error::io(&self.path))
    }

    /// Without its line end; `None` for an empty file.
    fn first_line(&self) -> Result<Option<String>> {
        let file = File::open(&self.path).map_err(Error::io(&self.path))?;
        let mut line = String::new();
        let mut reader = BufReader::new(file).take(CSV_HEADER_BYTES_MAX);
        reader.read_line(&mut line).map_err(Error::io(&self.path))?;
        Ok((!line.is_empty()).then(|| line.trim_end_matches('\n').to_owned()))
    }
}

/// Seconds since 1970, the form event files want.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// TFRecord: length (u64 LE), masked CRC of the length, data, masked CRC of the data
/// (tensorflow/core/lib/io/record_writer.h).
fn tf_record(data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u64).to_le_bytes();
    [&len[..], &masked_crc(&len), data, &masked_crc(data)].concat()
}

fn masked_crc(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

// The three messages of tensorflow/core/{util/event,framework/summary}.proto, with the fields used.
// A member of a `oneof` is encoded like an optional field of its own.

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

impl Event {
    fn now() -> Event {
        Event { wall_time: wall_time(), ..Event::default() }
    }
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps `from..to`, an epoch every 10.
    fn train(logs: &mut Logs, from: u64, to: u64) {
        for step in from..to {
            logs.scalars(step, &[("loss", 1.0 / (step + 1) as f64), ("lr", 0.1)]).unwrap();
            if step % 10 == 9 {
                logs.epoch(&[("epoch", (step / 10) as f64), ("val/acc", 0.5 + step as f64 / 1000.0)])
                    .unwrap();
            }
        }
    }

    fn read(run: &Path, name: &str) -> Vec<u8> {
        std::fs::read(run.join(name)).unwrap()
    }

    /// Splits an event file and checks all checksums.
    fn events(mut bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            assert_eq!(bytes[8..12], masked_crc(&bytes[..8]));
            assert_eq!(bytes[12 + len..16 + len], masked_crc(&bytes[12..12 + len]));
            events.push(Event::decode(&bytes[12..12 + len]).unwrap());
            bytes = &bytes[16 + len..];
        }
        events
    }

    #[test]
    fn a_resumed_run_has_the_same_records_as_one_never_stopped() {
        let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut logs = Logs::create(whole.path()).unwrap();
        train(&mut logs, 0, 50);
        let whole_events = logs.sync().unwrap().events_file;

        for checkpoint in [0, 5, 20, 37] {
            let mut logs = Logs::create(cut.path()).unwrap();
            train(&mut logs, 0, checkpoint);
            let offsets = logs.sync().unwrap();
            train(&mut logs, checkpoint, 45); // lost with the crash, but already in the files
            logs.flush().unwrap();
            drop(logs);
            let offsets: LogOffsets =
                serde_json::from_str(&serde_json::to_string(&offsets).unwrap()).unwrap();
            let mut logs = Logs::resume(cut.path(), &offsets).unwrap();
            train(&mut logs, checkpoint, 50);
            logs.sync().unwrap();

            for name in [CSV, JSONL] {
                assert_eq!(read(cut.path(), name), read(whole.path(), name), "{name} from step {checkpoint}");
            }
            let timeless = |run: &Path, name: &str| {
                let mut all = events(&read(run, name));
                assert!(all.iter().all(|e| e.wall_time > 1.7e9));
                all.iter_mut().for_each(|e| e.wall_time = 0.0);
                all
            };
            let resumed = timeless(cut.path(), &offsets.events_file);
            assert_eq!(resumed, timeless(whole.path(), &whole_events));
            assert_eq!(resumed.len(), 51);
        }
    }

    #[test]
    fn the_text_files_look_as_documented() {
        let run = tempfile::tempdir().unwrap();
        let mut logs = Logs::create(run.path()).unwrap();
        logs.scalars(3, &[("train/loss", 0.25), ("x", f64::NAN)]).unwrap();
        logs.epoch(&[("epoch", 1.0), ("acc", 0.5)]).unwrap();
        logs.epoch(&[("epoch", 2.0), ("acc", f64::NAN)]).unwrap();
        for bad in [&[("epoch", 3.0)][..], &[("acc", 0.5), ("epoch", 3.0)], &[("a,b", 1.0)]] {
            assert!(matches!(logs.epoch(bad), Err(Error::Argument { .. })));
        }
        let name = logs.sync().unwrap().events_file;
        assert_eq!(read(run.path(), CSV), b"epoch,acc\n1,0.5\n2,NaN\n");
        assert_eq!(read(run.path(), JSONL), b"{\"step\":3,\"train/loss\":0.25,\"x\":null}\n");
        let events = events(&read(run.path(), &name));
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        let value = &events[1].summary.as_ref().unwrap().value[0];
        assert_eq!((events[1].step, value.tag.as_str(), value.simple_value), (3, "train/loss", Some(0.25)));
    }

    #[test]
    fn a_record_has_the_published_checksums() {
        // CRC-32C of "123456789" is 0xe3069283 (RFC 3720's polynomial); masked by TFRecord's rule.
        let masked = 0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8);
        let record = tf_record(b"123456789");
        assert_eq!(record[..8], 9u64.to_le_bytes());
        assert_eq!(record[21..], masked.to_le_bytes());
    }

    #[test]
    fn missing_and_short_files_are_told_apart() {
        let run = tempfile::tempdir().unwrap();
        let mut logs = Logs::create(run.path()).unwrap();
        train(&mut logs, 0, 20);
        let offsets = logs.sync().unwrap();
        drop(logs);
        std::fs::remove_file(run.path().join(CSV)).unwrap();
        std::fs::remove_file(run.path().join(&offsets.events_file)).unwrap();
        let mut logs = Logs::resume(run.path(), &offsets).unwrap();
        train(&mut logs, 20, 30);
        let again = logs.sync().unwrap();
        drop(logs);
        assert_eq!(read(run.path(), CSV), b"epoch,val/acc\n2,0.529\n");
        assert_eq!(events(&read(run.path(), &offsets.events_file)).len(), 11);

        std::fs::write(run.path().join(JSONL), "{}\n").unwrap();
        assert!(matches!(Logs::resume(run.path(), &again), Err(Error::Damaged { .. })));
        for name in ["../events.out.tfevents.1", "results.csv", "events.out.tfevents.1/../../x"] {
            let offsets = LogOffsets { events_file: name.into(), ..again.clone() };
            assert!(matches!(Logs::resume(run.path(), &offsets), Err(Error::Argument { .. })), "{name}");
        }
    }
}

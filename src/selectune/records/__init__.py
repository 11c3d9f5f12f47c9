"""Training and test examples: read in the forms people have, encoded with exactly the assistant's words as labels, checked for leakage."""

from selectune.records.collating import collate
from selectune.records.encoding import Encoded, EncodedRecords, Encoder
from selectune.records.leaks import Leak, leakage
from selectune.records.picture import Picture
from selectune.records.reading import read_records, read_rows
from selectune.records.record import Message, Record, Records
from selectune.records.showing import Shown

__all__ = [
    "Encoded",
    "EncodedRecords",
    "Encoder",
    "Leak",
    "Message",
    "Picture",
    "Record",
    "Records",
    "Shown",
    "collate",
    "leakage",
    "read_records",
    "read_rows",
]

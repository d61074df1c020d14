"""No input may give 500: bodies that have broken other servers, at both doors."""

import pytest
from app_client import Client

DEPTH = 32
VALUES = {
    "null": b"null",
    "true": b"true",
    "a number": b"0",
    "a string": b'"[[1,2,3]]"',
    "an empty list": b"[]",
    "an empty object": b"{}",
    "a list of null": b"[null]",
    "a list of lists of null": b"[[null,null,null]]",
    "a list of an empty object": b"[{}]",
    "a list of an empty list": b"[[]]",
    "an object of lists": b'{"x":[[1,2,3]]}',
    "an object with numbers for names": b'{"0":[1,2,3]}',
    "NaN": b"[[NaN,1,2]]",
    "Infinity": b"[[Infinity,1,2]]",
    "-Infinity": b"[[-Infinity,1,2]]",
    "1e400": b"[[1e400,1,2]]",
    "-1e400": b"[[-1e400,1,2]]",
    "1e39, no FP32": b"[[1e39,1,2]]",
    "a huge exponent": b"[[1e99999999999999999999,1,2]]",
    "an integer of 400 digits": b"[[" + b"9" * 400 + b",1,2]]",
    "an integer of 10,000 digits": b"[[" + b"9" * 10_000 + b",1,2]]",
    "a fraction of 10,000 digits behind an integer": b"[[" + b"9" * 10_000 + b".5,1,2]]",
    "a leading zero": b"[[01,2,3]]",
    "a plus sign": b"[[+1,2,3]]",
    "a bare minus": b"[[-,2,3]]",
    "a bare point": b"[[.5,2,3]]",
    "a trailing point": b"[[1.,2,3]]",
    "hexadecimal": b"[[0x1,2,3]]",
    "a trailing comma": b"[[1,2,3],]",
    "a missing comma": b"[[1 2,3]]",
    "a comment": b"[[1,2,3]/**/]",
    "single quotes": b"[['1',2,3]]",
    "a lone high surrogate": b'[["\\ud800",1,2]]',
    "a lone low surrogate": b'[["\\udc00",1,2]]',
    "surrogates in the wrong order": b'[["\\udc00\\ud800",1,2]]',
    "a surrogate in UTF-8": b'[["\xed\xa0\x80",1,2]]',
    "no UTF-8": b'[["\xff",1,2]]',
    "overlong UTF-8": b'[["\xc0\xaf",1,2]]',
    "a NUL escape": b'[["\\u0000",1,2]]',
    "a NUL": b"[[\x001,2,3]]",
    "a line break in a string": b'[["\n",1,2]]',
    "an unknown escape": b'[["\\x41",1,2]]',
    "a cut escape": b'[["\\u12",1,2]]',
    "an unclosed string": b'[["1,2,3]]',
    "an unclosed list": b"[[1,2,3]",
    "a list closed by a brace": b"[[1,2,3}]",
    "as deep as allowed": b"[" * (DEPTH - 3) + b"]" * (DEPTH - 3),
    "too deep": b"[" * DEPTH + b"]" * DEPTH,
    "100,000 deep": b"[" * 100_000 + b"]" * 100_000,
    "100,000 deep in objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "100,000 deep and cut": b"[" * 100_000,
    "many empty lists": b"[" + b"[]," * 100_000 + b"[]]",
}
# Where such a value stands in a request; the last but one, whose dtype is BYTES, takes text.
PLACES = {
    "/v2/models/scale/infer": [
        b"%s",
        b'{"inputs":%s}',
        b'{"inputs":[%s]}',
        b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":%s}]}',
        b'{"inputs":[{"name":%s,"shape":[1,3],"datatype":"FP32","data":[1,2]}]}',
        b'{"inputs":[{"name":"x","shape":%s,"datatype":"FP32","data":[1,2,3]}]}',
        b'{"inputs":[{"name":"x","shape":[1,3],"datatype":%s,"data":[1,2,3]}]}',
        b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","parameters":{"binary_data_size":%s}}]}',
        b'{"inputs":[],"outputs":%s}',
        b'{"inputs":[],"parameters":{"timeout":%s}}',
        b'{"inputs":[],"unknown":%s}',
    ],
    "/v2/models/text/infer": [b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"BYTES","data":%s}]}'],
    "/v1/models/scale:predict": [b"%s", b'{"instances":%s}', b'{"instances":[%s,5]}', b'{"instances":[{"x":%s}]}'],
    "/v1/models/named:predict": [
        b'{"instances":[{"width":%s,"height":1}]}',
        b'{"instances":[{"width":1,"height":1,"depth":[%s]}]}',
    ],
    "/v1/models/mixed:predict": [b'{"instances":[{"a":%s,"b":[1]}]}', b'{"instances":[{"a":1,"b":%s}]}'],
    "/v1/models/text:predict": [b'{"instances":%s}'],
    "/v1/models/colour:predict": [b'{"instances":[{"b64":%s}]}', b'{"instances":[{"b64":"AAAA"},%s]}'],
}
CASES = [
    pytest.param(path, place, id=f"{path} {place.decode()}") for path, places in PLACES.items() for place in places
]


@pytest.mark.parametrize(("path", "place"), CASES)
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_nasty_values_are_the_callers_fault(path: str, place: bytes, value: bytes, client: Client) -> None:
    """400 in the form of the path's family, whatever stands where."""
    assert client.refused(400, client.post(path, place % value))


@pytest.mark.parametrize("path", PLACES)
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b" \n", id="blank"),
        pytest.param(b"\xef\xbb\xbf{}", id="a byte order mark"),
        pytest.param('{"instances":[[1,2,3]]}'.encode("utf-16"), id="UTF-16"),
        pytest.param('{"instances":[[1,2,3]]}'.encode("utf-32-le"), id="UTF-32"),
        pytest.param(b"{}{}", id="two documents"),
        pytest.param(b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00]\x94.", id="a pickle"),
        pytest.param(b"instances=1", id="a form"),
        pytest.param(bytes(1000), id="zeros"),
    ],
)
def test_what_is_no_json_is_refused(path: str, body: bytes, client: Client) -> None:
    """400, and the word request, which is what is wrong."""
    assert client.refused(400, client.post(path, body)).startswith("request: ")


def test_of_equal_names_the_last_counts(client: Client) -> None:
    """RFC 8259 leaves it open; here a name that comes twice means what it says last, and has to be right both times."""
    x = '"name":"y","name":"x","shape":[1,3],"datatype":"FP32","data":[9],"data":[1,2,3]'
    answer = client.post("/v2/models/scale/infer", f'{{"id":"a","inputs":[{{{x}}}],"id":"b"}}'.encode())
    assert answer.json["outputs"][0]["data"] == [2, 4, 6]
    assert answer.json["id"] == "b"
    twice = b'{"instances":[[9]],"instances":[{"x":[9],"x":[1,2,3]}]}'
    assert client.post("/v1/models/scale:predict", twice).json["predictions"] == [[2, 4, 6]]
    client.refused(400, client.post("/v1/models/scale:predict", b'{"instances":[{"x":[1,2,3],"x":[9]}]}'))
    client.refused(400, client.post("/v2/models/scale/infer", f'{{"inputs":[],"inputs":[{{{x}}}]}}'.encode()))


@pytest.mark.parametrize(
    "query",
    [
        "top_k=",
        "top_k=0",
        "top_k=4",
        "top_k=-1",
        "top_k=1.0",
        "top_k=x",
        "top_k=%00",
        "top_k=%FF",
        "top_k=1%0A",
        "top_k=" + "0" * 17 + "99",
        "top_k=000000001" + "9" * 5000,
    ],
)
def test_nasty_top_k_is_refused(query: str, client: Client) -> None:
    """As many labels as there are, and no fewer than one."""
    answer = client.post(f"/v1/models/colour:predict?{query}", {"instances": [{"b64": ""}]})
    assert client.refused(400, answer).startswith("top_k: expected a whole number from 1 to 3, got ")

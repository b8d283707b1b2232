import collections
import enum
import json
import math
import tempfile
import time
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

from hypothesis import HealthCheck, configuration, given, settings
from hypothesis import strategies as st
from lxml import etree
from markupsafe import Markup
from odoo.exceptions import MissingError, UserError
from odoo.tools import frozendict, mute_logger

from ..call import perform
from ..models.job_serialization import (
    TYPE_KEY,
    JobDecoder,
    JobEncoder,
    ModelNotFoundError,
    dump_call,
    dump_result,
    load_call,
)
from .case import JobCase

HOSTILE_STRINGS = (
    "",
    "\x00",
    "a\x00b",
    "\ud800",
    "\udfff tail",
    "\\u0000",
    "\\ud800",
    "😀",
    "\u2028",
    '"',
    "\\",
    "'; --",
)
FLOATS = (0.0, -0.0, 1.0, 0.1, 5e-324, 1.7976931348623157e308, 1e22, 123456789.123456789, math.inf, -math.inf, math.nan)
INTEGERS = (0, -1, 2**31, 2**63, -(2**63) - 1, 10**400, -(10**4000))


def same(left, right):
    """Whether two values are equal and of the same types, NaN and the sign of zero included."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return repr(left) == repr(right)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        # in the order of their keys' text, because jsonb does not keep that of the keys
        by_key = [sorted(value.items(), key=lambda item: ascii(item[0])) for value in (left, right)]
        return same([list(item) for item in by_key[0]], [list(item) for item in by_key[1]])
    if isinstance(left, set):
        return same(sorted(left, key=ascii), sorted(right, key=ascii))
    if isinstance(left, etree._Element):
        return etree.tostring(left) == etree.tostring(right)
    return left == right


class TestSerialization(JobCase):
    """Spec 1.1: what survives the way through the payload."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.runner = cls.env["res.users"].create({"name": "runner", "login": "runner"})
        folder = cls.enterClassContext(tempfile.TemporaryDirectory())
        configuration.set_hypothesis_home_dir(folder)
        cls.addClassCleanup(configuration.set_hypothesis_home_dir, None)

    def through_database(self, value):
        """``value`` after the way a payload goes: encoder, a ``jsonb`` of PostgreSQL, decoder."""
        self.env.cr.execute("SELECT %s::jsonb::text", (json.dumps(value, cls=JobEncoder),))
        return json.loads(self.env.cr.fetchone()[0], cls=JobDecoder, env=self.env)

    def assert_survives(self, value):
        for wrapped in (value, [value], {"key": value}, (value, {"deep": [({"deeper": value},)]})):
            back = self.through_database(wrapped)
            self.assertTrue(same(back, wrapped), f"{wrapped!r:.300} became {back!r:.300}")

    def test_json_types_survive(self):
        for value in (None, True, False, 0, 1, -7, 1.5, "text", [], {}, [1, [2, [3]]], {"a": {"b": None}}):
            with self.subTest(value):
                self.assert_survives(value)

    def test_dates_survive(self):
        zone = timezone(timedelta(hours=5, minutes=30))
        for value in (
            datetime(2026, 2, 28, 23, 59, 59, 999999),
            datetime.min,
            datetime.max,
            datetime(2026, 7, 1, 12, tzinfo=timezone.utc),
            datetime(2026, 7, 1, 12, tzinfo=zone),
            date(2024, 2, 29),
            date.min,
        ):
            with self.subTest(value):
                self.assert_survives(value)

    def test_bytes_survive(self):
        self.assert_survives(b"")
        self.assert_survives(bytes(range(256)))

    def test_decimals_survive_to_the_digit(self):
        for text in ("0", "-0", "1.10", "1E+400", "NaN", "Infinity", "3.14159265358979323846264338327950288"):
            with self.subTest(text):
                back = self.through_database(Decimal(text))
                self.assertEqual((type(back), str(back)), (Decimal, text))

    def test_tuples_and_sets_survive(self):
        for value in ((), (1, (2, [3])), set(), {1, "1", 2.5, None}, {(1, 2), ("a",)}):
            with self.subTest(value):
                self.assert_survives(value)

    def test_elements_survive(self):
        for text in (
            "<a/>",
            '<a b="ü">text<c/>tail<!-- note --></a>',
            "<a>&lt;&amp;\n  </a>",
            f"<a>{'x' * 11_000_000}</a>",
        ):
            with self.subTest(text[:40]):
                element = etree.fromstring(text, etree.XMLParser(huge_tree=True))
                self.assertTrue(same(self.through_database([element]), [element]))

    def test_an_element_comes_without_the_text_after_it(self):
        parent = etree.fromstring("<a><b/>after</a>")
        self.assertEqual(etree.tostring(self.through_database(parent[0])), b"<b/>")

    def test_markup_survives(self):
        back = self.through_database(Markup("<b>&amp;</b>"))
        self.assertEqual((type(back), back), (Markup, Markup("<b>&amp;</b>")))

    def test_hostile_strings_survive_as_values_and_as_keys(self):
        for text in HOSTILE_STRINGS:
            with self.subTest(ascii(text)):
                self.assert_survives(text)
                self.assert_survives({text: text})
                self.assert_survives({text})

    def test_huge_and_special_numbers_survive(self):
        for value in (*FLOATS, *INTEGERS):
            with self.subTest(ascii(value) if isinstance(value, float) else value.bit_length()):
                self.assert_survives(value)

    def test_an_integer_that_python_refuses_to_write_as_digits_survives(self):
        self.assertTrue(self.through_database([-(10**6000)]) == [-(10**6000)])

    def test_a_dictionary_with_the_marker_key_survives_as_a_dictionary(self):
        forged = {TYPE_KEY: "odoo_recordset", "model": "res.users", "ids": [1], "uid": 1, "su": True, "context": {}}
        for value in ({TYPE_KEY: None}, {TYPE_KEY: "bytes", "value": "AA=="}, forged, {"a": {TYPE_KEY: {TYPE_KEY: 1}}}):
            with self.subTest(value):
                self.assert_survives(value)

    def test_keys_that_are_no_strings_survive(self):
        self.assert_survives({1: "a", "1": "b", None: "c", 2.5: "e", (1, 2): "f", date(2026, 1, 1): "g", b"x": "h"})
        self.assert_survives({True: "yes", False: "no"})

    def test_kin_of_json_types_come_back_as_those(self):
        class Color(str, enum.Enum):
            RED = "red"

        class Level(enum.IntEnum):
            HIGH = 3

        class Tall(float):
            pass

        mappings = [frozendict(a=1), collections.defaultdict(list, a=[1]), collections.OrderedDict(a=1)]
        value = [*mappings, Color.RED, Level.HIGH, Tall(2)]
        self.assertTrue(same(self.through_database(value), [{"a": 1}, {"a": [1]}, {"a": 1}, "red", 3, 2.0]))

    def test_recordsets_survive_with_model_ids_user_su_and_context(self):
        user = self.env.ref("base.user_admin")
        partners = self.env["res.partner"].with_user(user).with_context(lang="en_US", active_test=False, other=1)
        for records in (
            self.target,
            self.env["test.job.target"],
            partners.browse([7, 3, 3]),
            partners.sudo().browse(1),
            partners.browse([2**31]),
        ):
            with self.subTest(records):
                [back] = self.through_database([records])
                self.assertEqual((back._name, back._ids), (records._name, records._ids))
                self.assertEqual((back.env.uid, back.env.su), (records.env.uid, records.env.su))
                for key in ("lang", "active_test"):
                    self.assertEqual(back.env.context.get(key), records.env.context.get(key))
                self.assertNotIn("other", back.env.context)

    def test_any_json_plus_odoo_value_survives(self):
        def elements(text):
            element = etree.Element("a")
            element.text = text
            return element

        characters = st.text(st.one_of(st.characters(), st.sampled_from(["\x00", "\ud800", "\udc00", "\\", '"', "😀"])))
        scalars = st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.sampled_from(INTEGERS),
            st.floats(),
            characters,
            st.sampled_from(HOSTILE_STRINGS),
            st.datetimes(),
            st.dates(),
            st.binary(),
            st.decimals(allow_nan=False),
        )
        records = st.lists(st.integers(1, 2**31)).map(self.env["res.partner"].browse)
        keys = st.one_of(
            characters, st.just(TYPE_KEY), st.integers(), st.booleans(), st.none(), st.dates(), st.binary()
        )
        hashable = st.one_of(st.integers(2), characters, st.dates(), st.tuples(characters, st.integers()))
        leaves = st.one_of(scalars, records, st.sets(hashable), st.sampled_from([None, "x", "ä\n"]).map(elements))
        values = st.recursive(
            leaves,
            lambda inner: st.one_of(
                st.lists(inner, max_size=5),
                st.lists(inner, max_size=5).map(tuple),
                st.dictionaries(keys, inner, max_size=5),
            ),
            max_leaves=15,
        )

        @settings(
            max_examples=300, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(values)
        def check(value):
            back = self.through_database([value])
            self.assertTrue(same(back, [value]), f"{value!r} became {back!r}")

        check()

    # --- on the way in -----------------------------------------------------------------------------------------------

    def assert_refused(self, error, wanted, *args, **kwargs):
        before = self.env["queue.job"].search_count([])
        with self.assertRaises(error) as caught:
            self.target.with_delay().job_echo(*args, **kwargs)
        self.assertIn(wanted, str(caught.exception))
        self.assertEqual(self.env["queue.job"].search_count([]), before)

    def test_an_argument_that_cannot_be_stored_is_named(self):
        self.assert_refused(TypeError, "argument 2 of test.job.target.job_echo()", 1, object())
        self.assert_refused(TypeError, "argument 'when' of test.job.target.job_echo()", when=timedelta(1))
        self.assert_refused(TypeError, "argument 1 of test.job.target.job_echo()['a'][1]", {"a": [0, self.env]})
        self.assert_refused(TypeError, "object is not serialisable", object())

    def test_a_value_that_contains_itself_is_refused(self):
        loop = []
        loop.append(loop)
        self.assert_refused(TypeError, "argument 1 of test.job.target.job_echo()", loop)

    def test_a_record_that_is_not_saved_is_refused(self):
        new = self.env["res.partner"].new({"name": "new"})
        self.assert_refused(TypeError, "argument 1 of test.job.target.job_echo()", new)
        with self.assertRaises(TypeError):
            new.with_delay().exists()

    def test_a_comment_is_no_element(self):
        self.assert_refused(TypeError, "argument 1 of", etree.Comment("text"))

    def test_a_name_of_an_argument_that_cannot_be_stored_is_refused(self):
        self.assert_refused(TypeError, "can't be called with an argument of such a name", **{"a\x00": 1})

    def test_every_kind_of_argument_reaches_the_method(self):
        values = (
            1,
            "a\x00b",
            b"x",
            Decimal("1.10"),
            (1, 2),
            {3},
            date(2026, 1, 1),
            datetime(2026, 1, 1, 2, 3),
            self.target,
        )
        job = self.target.with_delay().job_echo(*values, _type="marker", self_record=self.target)
        job.run_now()
        self.assertEqual(job.result["args"], repr(values))
        self.assertEqual(job.result["kwargs"], repr({"_type": "marker", "self_record": self.target}))

    # --- whose records arrive ----------------------------------------------------------------------------------------

    def load_one(self, record, foreign_uid=None):
        args, kwargs = dump_call([record], {}, "a call")
        (back,), _kwargs = load_call(json.loads(json.dumps(args)), kwargs, self.env(user=self.runner), foreign_uid)
        return back

    def test_a_record_argument_keeps_its_own_user_and_su(self):
        admin = self.env.ref("base.user_admin")
        plain = self.load_one(self.target.with_user(admin))
        self.assertEqual((plain.env.uid, plain.env.su), (admin.id, False))
        elevated = self.load_one(self.target.with_user(admin).sudo())
        self.assertEqual((elevated.env.uid, elevated.env.su), (admin.id, True))

    def test_a_record_argument_keeps_its_own_context_of_the_allow_list(self):
        back = self.load_one(self.target.with_context(tz="Asia/Tokyo", secret=1))
        self.assertEqual(back.env.context.get("tz"), "Asia/Tokyo")
        self.assertNotIn("secret", back.env.context)

    def test_a_record_argument_loses_su_and_its_user_when_the_job_is_another_users(self):
        admin = self.env.ref("base.user_admin")
        back = self.load_one(self.target.with_user(admin).sudo(), foreign_uid=admin.id)
        self.assertEqual((back.env.uid, back.env.su), (self.runner.id, False))

    def test_a_record_argument_of_a_third_user_keeps_its_user_but_not_su(self):
        admin = self.env.ref("base.user_admin")
        third = self.env["res.users"].create({"name": "third", "login": "third"})
        back = self.load_one(self.target.with_user(third).sudo(), foreign_uid=admin.id)
        self.assertEqual((back.env.uid, back.env.su), (third.id, False))

    def test_a_record_argument_may_be_gone_by_the_time_of_the_run(self):
        gone = self.env["test.job.target"].create({"name": "gone"})
        job = self.target.with_delay().job_echo(gone)
        gone.unlink()
        job.run_now()
        self.assertIn("test.job.target", job.result["args"])

    def test_a_record_of_a_model_that_is_not_there_fails_with_not_found(self):
        packed = {TYPE_KEY: "odoo_recordset", "model": "no.model", "ids": [1], "uid": 1, "su": False, "context": {}}
        with self.assertRaisesRegex(ModelNotFoundError, "'no.model' of an argument not found"):
            load_call([packed], {}, self.env)

    # --- results -----------------------------------------------------------------------------------------------------

    def stored_result(self, value):
        self.env.cr.execute("SELECT %s::jsonb", (dump_result(value),))
        return self.env.cr.fetchone()[0]

    def test_a_json_result_is_kept_as_it_is(self):
        for value in (None, True, 0, 1.5, "text", "😀", "\\u0000", "\\\\u0000", [1, {"a": None}], {"a": [1]}):
            with self.subTest(value):
                self.assertEqual(self.stored_result(value), value)

    def test_what_json_cannot_hold_becomes_its_repr(self):
        self.assertEqual(self.stored_result(self.target), repr(self.target))
        self.assertEqual(self.stored_result({"at": date(2026, 1, 1)}), {"at": "datetime.date(2026, 1, 1)"})
        self.assertEqual(self.stored_result({(1, 2): 3}), "{(1, 2): 3}")
        self.assertEqual(self.stored_result(math.nan), "nan")
        self.assertEqual(self.stored_result("a\x00b"), repr("a\x00b"))
        self.assertEqual(self.stored_result(["\ud800"]), repr(["\ud800"]))

    def test_a_broken_repr_does_not_fail_the_job(self):
        class Broken:
            def __repr__(self):
                raise ZeroDivisionError

        class Hostile:
            def __repr__(self):
                return "a\x00b\ud800"

        self.assertEqual(self.stored_result([Broken()]), ["<Broken, whose repr raises ZeroDivisionError>"])
        self.assertEqual(self.stored_result(Hostile()), "a\ufffdb?")

    def test_a_result_that_contains_itself_becomes_its_repr(self):
        loop = []
        loop.append(loop)
        self.assertEqual(self.stored_result(loop), "[[...]]")

    def test_a_result_over_64_kib_leaves_a_marker(self):
        for value in ("x" * 70_000, ["ü" * 40_000], {"a": list(range(30_000))}):
            with self.subTest(repr(value)[:20]):
                stored = self.stored_result(value)
                self.assertEqual(set(stored), {"__truncated__", "__repr__", "__size_bytes__"})
                self.assertIs(stored["__truncated__"], True)
                self.assertEqual(stored["__size_bytes__"], len(json.dumps(value, ensure_ascii=False).encode()))
                self.assertTrue(repr(value).startswith(stored["__repr__"]))
        self.assertEqual(self.stored_result("x" * (64 * 1024 - 2)), "x" * (64 * 1024 - 2))

    def test_megabytes_of_bytes_are_not_spelt_out_to_keep_a_thousand_characters(self):
        raw = bytes(range(256)) * 2**15
        for value in (raw, bytearray(raw), {"content": raw}, raw.decode("latin-1")[1:]):
            with self.subTest(type(value)):
                before = time.thread_time()
                stored = json.loads(dump_result(value))
                self.assertLess(time.thread_time() - before, 0.3)
                self.assertGreaterEqual(stored["__size_bytes__"], len(raw) - 1)
                self.assertTrue(repr(value).startswith(stored["__repr__"][:500]))


class TestDamagedPayload(JobCase):
    """Whatever stands in the table, the run raises an ordinary exception, and the job fails by the usual rules."""

    def setUp(self):
        super().setUp()
        self.job = self.enqueue(max_retries=1)
        self.good = self.job.payload

    def assert_fails_cleanly(self, payload):
        with self.assertRaisesRegex(Exception, "."), mute_logger("odoo.sql_db"):
            perform(self.env.cr, self.job.uuid, self.env.uid, payload)
        self.env.cr.execute("SELECT 1")

    def test_a_payload_that_is_no_object(self):
        for payload in (None, "", "text", 7, [], [[]], True):
            with self.subTest(payload):
                self.assert_fails_cleanly(payload)

    def test_a_truncated_payload(self):
        for key in ("model", "method", "ids", "args", "kwargs", "uid", "su", "context"):
            with self.subTest(key), self.assertRaisesRegex(ValueError, key):
                perform(self.env.cr, "uuid", self.env.uid, {k: v for k, v in self.good.items() if k != key})

    def test_values_of_wrong_types(self):
        wrong = {
            "model": (None, 7, "", [], {}),
            "method": (None, 7, "", [], {}),
            "ids": (None, 7, "abc", {"a": 1}, ["1"], [None], [1.5], [True], [[]]),
            "args": (None, 7, "text", {"a": 1}),
            "kwargs": (None, 7, "text", [], [1], {"no_such_argument": 1}),
            "context": (None, 7, "text", [], {"lang": {TYPE_KEY: "bytes"}}),
        }
        for key, values in wrong.items():
            for value in values:
                with self.subTest(key=key, value=value):
                    self.assert_fails_cleanly({**self.good, key: value})

    def test_damaged_values_among_the_arguments(self):
        for value in (
            {TYPE_KEY: "no such type"},
            {TYPE_KEY: None},
            {TYPE_KEY: {}},
            {TYPE_KEY: "bytes", "value": 7},
            {TYPE_KEY: "bytes", "value": "no base64!"},
            {TYPE_KEY: "datetime", "value": "yesterday"},
            {TYPE_KEY: "decimal", "value": "ten"},
            {TYPE_KEY: "float", "value": []},
            {TYPE_KEY: "int", "value": "zz"},
            {TYPE_KEY: "etree", "value": "<a><b></a>"},
            {TYPE_KEY: "set", "value": [[1]]},
            {TYPE_KEY: "dict", "items": [[[], 1]]},
            {TYPE_KEY: "dict", "items": [1]},
            {TYPE_KEY: "odoo_recordset", "model": "res.partner"},
            {TYPE_KEY: "odoo_recordset", "model": [], "ids": [], "uid": 1, "su": False, "context": {}},
            {TYPE_KEY: "odoo_recordset", "model": "res.partner", "ids": [1], "uid": "x", "su": False, "context": {}},
            {TYPE_KEY: "odoo_recordset", "model": "res.partner", "ids": [1], "uid": 1, "su": False, "context": 7},
        ):
            with self.subTest(value):
                self.assert_fails_cleanly({**self.good, "args": [value]})

    def test_an_unknown_model_is_told_as_not_found(self):
        with self.assertRaisesRegex(ModelNotFoundError, "model 'no.such' not found"):
            perform(self.env.cr, "uuid", self.env.uid, {**self.good, "model": "no.such"})

    def test_a_deleted_record_is_told_as_not_found(self):
        gone = self.env["test.job.target"].create({"name": "gone"})
        payload = {**self.good, "ids": [self.target.id, gone.id]}
        gone.unlink()
        with self.assertRaisesRegex(MissingError, f"{gone.id}.* not found"):
            perform(self.env.cr, "uuid", self.env.uid, payload)

    def test_a_deleted_user_is_told_as_not_found(self):
        with self.assertRaisesRegex(MissingError, "user of the job was not found"):
            perform(self.env.cr, "uuid", None, self.good)

    def test_a_million_ids(self):
        with self.assertRaisesRegex(MissingError, "not found"):
            perform(self.env.cr, "uuid", self.env.uid, {**self.good, "ids": list(range(1, 1_000_001))})
        self.assert_fails_cleanly({**self.good, "ids": [2**70, -1, 0]})

    def test_names_that_are_no_methods(self):
        for name in ("", "__class__", "__init__", "no_such_method", "name", "a.b", "_name", None, 7, []):
            with self.subTest(name):
                self.assert_fails_cleanly({**self.good, "method": name})

    def test_a_job_with_a_damaged_payload_is_retried_and_fails_like_any_other(self):
        for payload in ("null", '"text"', "[]", "{}", '{"model": "test.job.target"}'):
            with self.subTest(payload):
                job = self.enqueue(max_retries=1)
                self.set_column(job, "payload", payload)
                self.assertIsInstance(self.run_job(job), ValueError)
                self.assertEqual((job.state, job.attempts), ("pending", 1))
                self.assertIsInstance(self.run_job(job), ValueError)
                self.assertEqual((job.state, job.attempts), ("failed", 2))
                self.assertIn("damaged payload", job.exc_info)

    def test_a_job_with_a_damaged_payload_can_be_looked_at(self):
        fields = [name for name, field in self.env["queue.job"]._fields.items() if name != "display_name"]
        for payload in (
            None,
            "null",
            '"text"',
            "[]",
            '{"model": 7, "method": [], "ids": "abc", "args": 5, "kwargs": [1]}',
            '{"ids": [null, "1", 99999999999], "args": {"_type": "odoo_recordset", "ids": 5}, "kwargs": {"_type": []}}',
            '{"args": [{"_type": "odoo_recordset", "ids": 5}], "kwargs": {"a": {"_type": []}}}',
        ):
            with self.subTest(payload):
                self.set_column(self.job, "payload", payload)
                [values] = self.job.read(fields)
                self.assertEqual(values["id"], self.job.id)
                with self.assertRaisesRegex(UserError, "no record to show"):
                    self.job.open_related_action()

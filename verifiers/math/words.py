"""The vocabulary of answers: functions, names of symbols, relations, units, and the words that are none of these."""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# "No real solution" and "no solution" differ only for a question about complex numbers, which states its domain.
NO_SOLUTION = re.compile(
    r"(?:there (?:is|are) )?no (?:real )?(?:solutions?|roots?)(?: exists?)?|(?:the )?(?:empty|null) set|none"
)
ALL_REALS = re.compile(r"(?:all|any|(?:the )?set of(?: all)?) real(?:s| numbers?)")
WORD_ALIASES = {"dne": "does not exist"}
FUNCTIONS = _words("""sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh ln log exp abs floor ceil gcd
    lcm max min lg""")
GREEK = _words("""alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho
    sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell""")
UNITS = _words("""cm mm km kg mg ml mL dm nm ft in yd mi lb lbs oz hr hrs min mins sec secs mph mpg kmh kph am pm hz Hz
    kHz kW kJ cal gal pt qt pts deg rad day days""")
# Words that change or deny what stands beside them, so that they cannot be read as a unit.
NOT_UNITS = _words("""not no is isnt are than but if minus plus times less more least most about approximately between
    either neither nor maybe possibly probably the a an dozen half quarter score pair greater fewer over under around
    nearly wrong undefined false true below never cannot excluded""")
# Words that change the number right before them: "12 halves", "12 squared". "12 cm squared" is a quantity.
NOT_AFTER_NUMBERS = _words("""squared cubed factorial halves thirds fourths fifths sixths sevenths eighths ninths tenths
    elevenths twelfths thirteenths fourteenths fifteenths sixteenths twentieths thirtieths hundredths thousandths
    millionths dozens twice double triple choose inverse reciprocal zero""")
RELATIONS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "leq": "<=", "le": "<=", "geq": ">=",
    "ge": ">=", "neq": "!=", "ne": "!=", "lt": "<", "gt": ">", "leqslant": "<=", "geqslant": ">=", "equiv": "=",
}  # fmt: skip
MULTIPLIERS = {
    "hundred": "100",
    "thousand": "1000",
    "million": "1000000",
    "billion": "1000000000",
    "trillion": "1000000000000",
}
DEGREE = _words("circ degree deg")
TRIGONOMETRIC = _words("sin cos tan cot sec csc")
BASES = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "eleven": "11", "twelve": "12", "sixteen": "16",
}  # fmt: skip
BRACKETS = {"floor": ("lfloor", "rfloor"), "ceil": ("lceil", "rceil"), "abs": ("lvert", "rvert")}
MATRICES = _words("matrix pmatrix bmatrix Bmatrix vmatrix array smallmatrix")
# Commands that stand between values or close a group, so that no product goes on with them.
NOT_ATOMS = _words("""} times cdot ast div pm mp cup cap setminus backslash in approx % degree rfloor rceil rvert vee
    lor & mid rangle
    wedge land""")
UNIT_ALIASES = {
    alias: name
    for name, aliases in {
        "cm": "centimeter centimeters centimetre centimetres", "mm": "millimeter millimeters",
        "m": "meter meters metre metres", "km": "kilometer kilometers kilometre kilometres",
        "kg": "kilogram kilograms", "g": "gram grams", "ft": "foot feet", "in": "inch inches", "mi": "mile miles",
        "yd": "yard yards", "hr": "hrs hour hours h", "min": "mins minute minutes", "s": "sec secs second seconds",
        "day": "days", "week": "weeks", "month": "months", "year": "years", "lb": "lbs pound pounds",
        "oz": "ounce ounces", "l": "liter liters litre litres", "ml": "milliliter milliliters",
        "$": "dollar dollars usd", "cents": "cent ¢", "euro": "euros eur",
        "degree": "degrees deg", "radian": "radians rad", "am": "", "pm": "", "mi/hr": "mph", "km/hr": "kmh kph",
    }.items()
    for alias in [name, *aliases.split()]
}  # fmt: skip

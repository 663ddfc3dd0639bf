"""Families of mathematical problems with solutions in LaTeX; each draws its numbers, so that no two are alike."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from math import comb, factorial, isqrt
from random import Random

Problem = tuple[str, str]
"""The question and its solution."""

_PEOPLE = (
    "Ada", "Ben", "Chloe", "Daniel", "Elif", "Farid", "Grace", "Hana", "Ivan", "Julia",
    "Kofi", "Lena", "Mina", "Noah", "Olga", "Pedro", "Rosa", "Sam", "Tara", "Yusuf",
)  # fmt: skip
_THINGS = (
    "apples",
    "books",
    "candles",
    "coins",
    "eggs",
    "flowers",
    "marbles",
    "notebooks",
    "pencils",
    "postcards",
    "shells",
    "stamps",
    "tickets",
)
_PLACES = ("town", "harbour", "station", "village", "library", "museum", "farm", "airport", "lake")


def linear_equation(random: Random) -> Problem:
    a, c = random.sample(range(2, 30), 2)
    x, b = random.randint(-20, 20), random.randint(-40, 40)
    d = (a - c) * x + b
    question = f"Solve ${a}x {b:+d} = {c}x {d:+d}$ for $x$."
    return question, (
        f"Subtract ${c}x$ from both sides and bring the constants to the right: ${a - c}x = {d - b}$. "
        f"Dividing by ${a - c}$ gives $x = {x}$. Check: ${a}\\cdot({x}) {b:+d} = {a * x + b}$ and "
        f"${c}\\cdot({x}) {d:+d} = {c * x + d}$."
    )


def quadratic(random: Random) -> Problem:
    p, q = random.randint(-15, 15), random.randint(-15, 15)
    b, c = -(p + q), p * q
    discriminant = b * b - 4 * c
    question = random.choice(("Find all real solutions of", "Determine the roots of", "Solve"))
    return f"{question} $x^2 {b:+d}x {c:+d} = 0$.", (
        f"The discriminant is $\\Delta = ({b})^2 - 4\\cdot({c}) = {discriminant}$, whose root is "
        f"$\\sqrt{{\\Delta}} = {isqrt(discriminant)}$. Hence $x = \\frac{{{-b} \\pm {isqrt(discriminant)}}}{{2}}$, "
        f"that is $x_1 = {max(p, q)}$ and $x_2 = {min(p, q)}$. Indeed $(x {-p:+d})(x {-q:+d}) = x^2 {b:+d}x {c:+d}$."
    )


def two_unknowns(random: Random) -> Problem:
    x, y = random.randint(-12, 12), random.randint(-12, 12)
    a, b, c, d = (random.randint(1, 11) for _ in range(4))
    if a * d == b * c:
        d += 1
    determinant = a * d - b * c
    e, f = a * x + b * y, c * x + d * y
    question = (
        f"Solve the system \\[ \\begin{{cases}} {a}x + {b}y = {e} \\\\ {c}x + {d}y = {f} \\end{{cases}} \\] "
        "by Cramer's rule."
    )
    return question, (
        f"The determinant of the coefficients is ${a}\\cdot{d} - {b}\\cdot{c} = {determinant} \\neq 0$, so there is "
        f"exactly one solution. $x = \\frac{{{e}\\cdot{d} - {b}\\cdot({f})}}{{{determinant}}} = "
        f"\\frac{{{e * d - b * f}}}{{{determinant}}} = {x}$ and $y = \\frac{{{a}\\cdot({f}) - {c}\\cdot({e})}}"
        f"{{{determinant}}} = \\frac{{{a * f - c * e}}}{{{determinant}}} = {y}$."
    )


def derivative(random: Random) -> Problem:
    coefficients = [random.randint(-9, 9) for _ in range(random.randint(3, 6))] + [random.randint(1, 9)]
    slopes = [power * value for power, value in enumerate(coefficients)][1:]
    at = random.randint(-3, 3)
    value = sum(slope * at**power for power, slope in enumerate(slopes))
    question = f"Differentiate $f(x) = {polynomial(coefficients)}$ and find the slope of its graph at $x = {at}$."
    return question, (
        f"Term by term, by the power rule $(x^n)' = n x^{{n-1}}$: $f'(x) = {polynomial(slopes)}$. "
        f"At $x = {at}$ this is $f'({at}) = {value}$, so the tangent there "
        f"{'rises' if value > 0 else 'falls' if value < 0 else 'is horizontal'}."
    )


def integral(random: Random) -> Problem:
    coefficients = [random.randint(-9, 9) for _ in range(random.randint(1, 4))] + [random.randint(1, 9)]
    low = random.randint(-3, 2)
    high = low + random.randint(1, 4)
    primitive = [Fraction(0)] + [Fraction(value, power + 1) for power, value in enumerate(coefficients)]
    at_low, at_high = (sum(value * at**power for power, value in enumerate(primitive)) for at in (low, high))
    return f"Evaluate $\\int_{{{low}}}^{{{high}}} \\left({polynomial(coefficients)}\\right) dx$.", (
        f"A primitive is $F(x) = {polynomial(primitive)}$. By the fundamental theorem the integral is "
        f"$F({high}) - F({low}) = {latex(at_high)} - \\left({latex(at_low)}\\right) = {latex(at_high - at_low)}$."
    )


def euclid(random: Random) -> Problem:
    a, b = sorted(random.sample(range(100, 5000), 2), reverse=True)
    steps, x, y = [], a, b
    while y:
        steps.append(f"{x} &= {x // y}\\cdot {y} + {x % y}")
        x, y = y, x % y
    question = f"Compute $\\gcd({a}, {b})$ and $\\operatorname{{lcm}}({a}, {b})$."
    verdict = "The two numbers are coprime. " if x == 1 else ""
    return question, (
        "Euclid's algorithm divides with remainder until the remainder is zero:\n\\begin{align*}\n"
        + " \\\\\n".join(steps)
        + f"\n\\end{{align*}}\nThe last divisor is the answer: $\\gcd({a}, {b}) = {x}$. {verdict}Since "
        f"$\\gcd\\cdot\\operatorname{{lcm}} = {a}\\cdot{b} = {a * b}$, the least common multiple is ${a * b // x}$."
    )


def modular_power(random: Random) -> Problem:
    base, exponent, modulus = random.randint(2, 40), random.randint(20, 500), random.randint(11, 400)
    lines, power, square, result = [], exponent, base % modulus, 1
    index = 0
    while power:
        lines.append(f"{base}^{{{2**index}}} &\\equiv {square}")
        if power & 1:
            result = result * square % modulus
        square, power, index = square * square % modulus, power >> 1, index + 1
    return f"What is the remainder of ${base}^{{{exponent}}}$ on division by ${modulus}$?", (
        f"In binary ${exponent} = ({exponent:b})_2$, so square repeatedly modulo ${modulus}$:\n\\begin{{align*}}\n"
        + " \\\\\n".join(lines)
        + f"\n\\end{{align*}}\nMultiplying the powers that belong to the ones gives "
        f"${base}^{{{exponent}}} \\equiv {result} \\pmod{{{modulus}}}$."
    )


def arithmetic_series(random: Random) -> Problem:
    first, step, terms = random.randint(-20, 50), random.randint(2, 25), random.randint(8, 80)
    last = first + (terms - 1) * step
    question = (
        f"The first three terms of an arithmetic sequence are ${first}$, ${first + step}$ and ${first + 2 * step}$. "
        f"Find term number ${terms}$ and the sum of the first ${terms}$ terms."
    )
    return question, (
        f"The difference is $d = {step}$. Therefore $a_{{{terms}}} = {first} + {terms - 1}\\cdot {step} = {last}$ "
        f"and $S_{{{terms}}} = \\frac{{{terms}}}{{2}}\\left({first} + {last}\\right) = "
        f"{latex(Fraction(terms * (first + last), 2))}$."
    )


def geometric_series(random: Random) -> Problem:
    first, ratio = random.randint(1, 30), Fraction(random.randint(1, 6), random.randint(7, 12))
    question = f"Does the series $\\sum_{{n=0}}^{{\\infty}} {first}\\left({latex(ratio)}\\right)^n$ converge? To what?"
    return question, (
        f"It is geometric with ratio $r = {latex(ratio)}$ and $|r| < 1$, so it converges to "
        f"$\\frac{{{first}}}{{1 - {latex(ratio)}}} = {latex(first / (1 - ratio))}$. Its sums: "
        f"${first}, {latex(first * (1 + ratio))}, {latex(first * (1 + ratio + ratio**2))}, \\dots$"
    )


def matrix_product(random: Random) -> Problem:
    a, b, c, d, e, f, g, h = (random.randint(-9, 9) for _ in range(8))
    p, q, r, s = a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h
    left, right, product = matrix(a, b, c, d), matrix(e, f, g, h), matrix(p, q, r, s)
    question = f"Let $A = {left}$ and $B = {right}$. Compute $AB$ and verify $\\det(AB) = \\det A \\det B$."
    return question, (
        f"Rows times columns: $AB = {product}$, for instance the upper left entry is "
        f"${a}\\cdot({e}) + ({b})\\cdot({g}) = {p}$. Further $\\det A = {a * d - b * c}$, $\\det B = {e * h - f * g}$ "
        f"and $\\det(AB) = {p * s - q * r} = {a * d - b * c}\\cdot({e * h - f * g})$."
    )


def drawing_balls(random: Random) -> Problem:
    red, blue, drawn = random.randint(3, 14), random.randint(3, 14), random.randint(2, 3)
    total = comb(red + blue, drawn)
    same = comb(red, drawn) + comb(blue, drawn)
    who = random.choice(_PEOPLE)
    question = (
        f"An urn holds {red} red and {blue} blue balls. {who} draws {drawn} of them at once. "
        "What is the probability that all have the same colour?"
    )
    return question, (
        f"There are $\\binom{{{red + blue}}}{{{drawn}}} = {total}$ equally likely draws. Of these "
        f"$\\binom{{{red}}}{{{drawn}}} + \\binom{{{blue}}}{{{drawn}}} = {same}$ "
        f"are of one colour, hence $P = \\frac{{{same}}}{{{total}}} = {latex(Fraction(same, total))} "
        f"\\approx {same / total:.4f}$."
    )


def arrangements(random: Random) -> Problem:
    word = random.choice(
        (
            "algebra",
            "banana",
            "committee",
            "divide",
            "geometry",
            "integral",
            "letter",
            "matrix",
            "parallel",
            "success",
            "vector",
        )
    )
    counts = {letter: word.count(letter) for letter in sorted(set(word)) if word.count(letter) > 1}
    product = 1
    for repeated in counts.values():
        product *= factorial(repeated)
    shelf = random.randint(4, 9)
    question = (
        f"(a) In how many ways can {shelf} different {random.choice(_THINGS)} be put in a row? "
        f"(b) How many arrangements have the letters of the word {word.upper()}?"
    )
    repeats = " ".join(f"{letter.upper()} occurs {times} times." for letter, times in counts.items())
    return question, (
        f"(a) ${shelf}! = {factorial(shelf)}$. (b) The word has {len(word)} letters. {repeats or 'None is repeated.'} "
        f"Exchanging equal letters changes nothing, so there are "
        f"$\\frac{{{len(word)}!}}{{{product}}} = {factorial(len(word)) // product}$ arrangements."
    )


def prime_factors(random: Random) -> Problem:
    number = random.randint(500, 60_000)
    factors, rest, divisor = [], number, 2
    while rest > 1:
        while rest % divisor == 0:
            factors.append(divisor)
            rest //= divisor
        divisor += 1
    powers = {prime: factors.count(prime) for prime in dict.fromkeys(factors)}
    divisors = 1
    for power in powers.values():
        divisors *= power + 1
    product = " \\cdot ".join(f"{prime}^{{{power}}}" if power > 1 else str(prime) for prime, power in powers.items())
    verdict = "it is prime" if len(factors) == 1 else f"its largest prime factor is ${factors[-1]}$"
    return f"Factor ${number}$ into primes. How many divisors does it have?", (
        f"Dividing by the primes up to $\\lfloor\\sqrt{{{number}}}\\rfloor = {isqrt(number)}$ we find "
        f"${number} = {product}$; {verdict}. The number of divisors is the product of the exponents, "
        f"each raised by one: ${divisors}$."
    )


def induction(random: Random) -> Problem:
    a, b = random.randint(1, 12), random.randint(-9, 12)
    question = (
        f"Prove by induction that $\\sum_{{k=1}}^{{n}} ({2 * a}k {b:+d}) = {a}n^2 {a + b:+d}n$ for all $n \\geq 1$."
    )
    return question, (
        f"For $n = 1$ both sides equal ${2 * a + b}$. Suppose the claim holds for some $n$. Then "
        f"\\[ \\sum_{{k=1}}^{{n+1}} ({2 * a}k {b:+d}) = {a}n^2 {a + b:+d}n + {2 * a}(n+1) {b:+d} "
        f"= {a}(n^2 + 2n + 1) {a + b:+d}(n+1) = {a}(n+1)^2 {a + b:+d}(n+1), \\] "
        "which is the claim for $n + 1$. By induction it holds for every $n$. $\\blacksquare$"
    )


def limit(random: Random) -> Problem:
    root, other, third = random.sample([value for value in range(-12, 13) if value], 3)
    top = polynomial([root * other, -(root + other), 1])
    bottom = polynomial([root * third, -(root + third), 1])
    value = latex(Fraction(root - other, root - third))
    return f"Find $\\lim_{{x \\to {root}}} \\frac{{{top}}}{{{bottom}}}$.", (
        f"Numerator and denominator both vanish at $x = {root}$. Factoring, the fraction is "
        f"$\\frac{{(x {-root:+d})(x {-other:+d})}}{{(x {-root:+d})(x {-third:+d})}} = "
        f"\\frac{{x {-other:+d}}}{{x {-third:+d}}}$, continuous at $x = {root}$. The limit is ${value}$."
    )


def shopping(random: Random) -> Problem:
    who, other = random.sample(_PEOPLE, 2)
    thing = random.choice(_THINGS)
    amount, price, percent = random.randint(4, 60), random.randint(2, 40), random.choice((5, 10, 12, 15, 20, 25, 30))
    total = amount * price
    reduced = Fraction(total * (100 - percent), 100)
    question = (
        f"{who} buys {amount} {thing} at {price} coins each, and {percent}\\% is taken off the whole. "
        f"{other} shares the cost equally. How much does each of the two pay?"
    )
    return question, (
        f"Without the reduction the {thing} cost ${amount} \\cdot {price} = {total}$ coins. After it "
        f"${total} \\cdot \\frac{{{100 - percent}}}{{100}} = {float(reduced):g}$ coins remain, and each pays half: "
        f"${float(reduced / 2):g}$ coins."
    )


def meeting(random: Random) -> Problem:
    who, other = random.sample(_PEOPLE, 2)
    place, goal = random.sample(_PLACES, 2)
    slow, fast, hours = random.randint(3, 20), random.randint(21, 60), random.randint(1, 6)
    distance = (slow + fast) * hours
    question = (
        f"The {place} and the {goal} are {distance} km apart. {who} leaves the {place} at {slow} km/h, and at the same "
        f"moment {other} leaves the {goal} towards {who} at {fast} km/h. When and where do they meet?"
    )
    return question, (
        f"Together they cover ${slow} + {fast} = {slow + fast}$ km each hour, so they meet after "
        f"$\\frac{{{distance}}}{{{slow + fast}}} = {hours}$ hours. By then {who} has gone ${slow}\\cdot{hours} = "
        f"{slow * hours}$ km from the {place}, and {other} the remaining ${fast * hours}$ km."
    )


def right_triangle(random: Random) -> Problem:
    m = random.randint(2, 14)
    n = random.randint(1, m - 1)
    scale = random.randint(1, 4)
    a, b, c = (scale * side for side in (m * m - n * n, 2 * m * n, m * m + n * n))
    question = f"A right triangle has legs $a = {a}$ and $b = {b}$. Find its hypotenuse, area and inscribed radius."
    return question, (
        f"By Pythagoras $c = \\sqrt{{{a}^2 + {b}^2}} = \\sqrt{{{a * a + b * b}}} = {c}$. The area is "
        f"$\\frac{{1}}{{2}}\\cdot {a}\\cdot {b} = {a * b // 2}$, and the inscribed circle has radius "
        f"$r = \\frac{{a + b - c}}{{2}} = {(a + b - c) // 2}$."
    )


def number_bases(random: Random) -> Problem:
    number, base = random.randint(100, 9999), random.randint(3, 9)
    digits, lines, rest = [], [], number
    while rest:
        lines.append(f"{rest} = {base}\\cdot {rest // base} + {rest % base}")
        digits.append(str(rest % base))
        rest //= base
    return f"Write the decimal number ${number}$ in base ${base}$.", (
        f"Divide by ${base}$ again and again and keep the remainders: "
        + ", ".join(f"${line}$" for line in lines)
        + f". Read from the last to the first they give ${number} = ({''.join(reversed(digits))})_{{{base}}}$."
    )


def square_root(random: Random) -> Problem:
    number = random.choice([value for value in range(2, 900) if isqrt(value) ** 2 != value])
    guesses = [float(isqrt(number) + 1)]
    for _ in range(4):
        guesses.append((guesses[-1] + number / guesses[-1]) / 2)
    steps = ", ".join(f"$x_{index} = {guess:.10g}$" for index, guess in enumerate(guesses))
    change = max(abs(a - b) for a, b in list(pairwise(guesses))[-1:])
    return f"Approximate $\\sqrt{{{number}}}$ by Newton's method, starting from $x_0 = {isqrt(number) + 1}$.", (
        f"For $f(x) = x^2 - {number}$ the step is $x_{{n+1}} = x_n - \\frac{{f(x_n)}}{{f'(x_n)}} = "
        f"\\frac{{1}}{{2}}\\left(x_n + \\frac{{{number}}}{{x_n}}\\right)$. The values are {steps}. "
        f"The last step changes the value by about ${change:.1e}$, so ${guesses[-1]:.8f}$ is right to eight places."
    )


def polynomial(coefficients: Sequence[int | Fraction]) -> str:
    """LaTeX of a polynomial from its coefficients, the constant first."""
    terms = []
    for power in reversed(range(len(coefficients))):
        value = Fraction(coefficients[power])
        if value:
            variable = "" if power == 0 else "x" if power == 1 else f"x^{{{power}}}"
            size = "" if abs(value) == 1 and power else latex(abs(value))
            terms.append(f"{'-' if value < 0 else '+'} {size}{variable}")
    return " ".join(terms).removeprefix("+ ") or "0"


def latex(value: Fraction | int) -> str:
    """LaTeX of a rational number in lowest terms."""
    value = Fraction(value)
    if value.denominator == 1:
        return str(value.numerator)
    return f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def matrix(a: int, b: int, c: int, d: int) -> str:
    return f"\\begin{{pmatrix}} {a} & {b} \\\\ {c} & {d} \\end{{pmatrix}}"


PROBLEMS: tuple[Callable[[Random], Problem], ...] = (
    linear_equation,
    quadratic,
    two_unknowns,
    derivative,
    integral,
    euclid,
    modular_power,
    arithmetic_series,
    geometric_series,
    matrix_product,
    drawing_balls,
    arrangements,
    prime_factors,
    induction,
    limit,
    shopping,
    meeting,
    right_triangle,
    number_bases,
    square_root,
)

"""Names for containers that nobody named: an adjective and the surname of a scientist."""

from __future__ import annotations

import secrets

_ADJECTIVES = """
able agile airy alert amber ample apt arch attentive avid balmy bold bonny brave breezy bright
brisk calm candid careful casual cheery chipper civil clear clever cosy crisp curious dapper daring
deft dewy direct dreamy eager earnest easy elated even exact fair fearless fine fleet fluent fond
frank free fresh friendly frosty gallant gentle giddy glad golden grand handy happy hardy hearty
honest humble jaunty jolly jovial keen kind lively loyal lucid lucky mellow merry mild modest neat
nimble noble open patient peaceful placid plucky polite prompt proud quick quiet ready robust rosy
serene sharp shiny silent sincere sleek smart snug sober solid spry stable steady sturdy subtle
sunny swift tender tidy tranquil trim true upbeat vivid warm wise witty wry zesty
"""

_SURNAMES = """
abel agnesi ampere arago archimedes babbage banach bassi becquerel bernoulli bessel bohr boltzmann
boole bose boyle brahe cantor carson cauchy cavendish celsius chandrasekhar church clairaut coulomb
curie dalton darwin descartes dirac dijkstra doppler eddington einstein euclid euler faraday fermat
fermi feynman fibonacci foucault fourier franklin fresnel galileo galois gauss germain gibbs godel
goodall hamilton heisenberg herschel hertz hilbert hodgkin hooke hopper hubble huygens hypatia
jacobi jenner joule kelvin kepler khwarizmi knuth kovalevskaya lagrange laplace lavoisier leavitt
leibniz linnaeus lorentz lovelace mach maxwell mayer meitner mendel mendeleev mirzakhani moser
napier newton noether oersted ohm pascal pasteur pauli payne planck poincare ptolemy ramanujan
rayleigh riemann rontgen rubin rutherford sagan schrodinger shannon snell somerville tesla thales
torricelli turing volta wallis watt weierstrass weyl wiles wu yalow zeeman
"""


def suggest(attempt: int = 0) -> str:
    """A random name; from the third ``attempt`` on with a number, so that one is free at last."""
    name = f"{secrets.choice(_ADJECTIVES.split())}_{secrets.choice(_SURNAMES.split())}"
    return name if attempt < 2 else f"{name}{secrets.randbelow(10**attempt)}"
